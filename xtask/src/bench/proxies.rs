//! The proxies of the measurement: one worker or thread each, least connections, X-Forwarded-For added, no access
//! log, no TLS, no time limit that could cut a tunnel.

use std::fmt::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::free_addr;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Proxy {
    /// Evenkeel with its engine on io_uring.
    IoUring,
    /// Evenkeel with the portable engine.
    Portable,
    Haproxy,
    Nginx,
}

/// Looks for a proxy's listener so often, …
const LOOK_EACH: Duration = Duration::from_millis(20);
/// … 10 s in all.
const LOOKS: u32 = 500;

impl Proxy {
    pub(super) const ALL: [Self; 4] = [Self::IoUring, Self::Portable, Self::Haproxy, Self::Nginx];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::IoUring => "io_uring",
            Self::Portable => "portable",
            Self::Haproxy => "haproxy",
            Self::Nginx => "nginx",
        }
    }

    /// What the program says of its version; `None`: it is not there.
    pub(super) fn version(self, evenkeel: &Path) -> Option<String> {
        let (program, flag) = match self {
            Self::IoUring | Self::Portable => (evenkeel, "--version"),
            Self::Haproxy => (Path::new("haproxy"), "-v"),
            Self::Nginx => (Path::new("nginx"), "-v"),
        };
        let said = Command::new(program).arg(flag).output().ok()?;
        let text = [said.stdout, said.stderr].concat();
        let first = String::from_utf8_lossy(&text).lines().next()?.to_owned();
        let words = first.replace("version: ", "").replace("version ", "").replace("nginx nginx/", "nginx ");
        let version = words.split(' ').take(2).collect::<Vec<_>>().join(" ");
        let ours = matches!(self, Self::IoUring | Self::Portable);
        Some(if ours { format!("{version}, {}", self.name()) } else { version })
    }

    pub(super) fn start(self, evenkeel: &Path, folder: &Path, ports: &[u16], core: usize) -> Result<Running> {
        let addr = free_addr()?;
        let mut command = Command::new("taskset");
        command.args(["-c", &core.to_string()]).current_dir(folder);
        match self {
            Self::IoUring | Self::Portable => {
                command.arg(evenkeel).args(["serve", "--gateway-engine", self.name()]);
                for port in ports {
                    command.args(["--to", &format!("ws://127.0.0.1:{port}")]);
                }
                let admin = free_addr()?;
                command.args(["--gateway-listen", &addr.to_string(), "--admin-listen", &admin.to_string()]);
                command.args(["--log-level", "error"]);
            }
            Self::Haproxy => {
                let path = folder.join("haproxy.cfg");
                std::fs::write(&path, haproxy(addr, ports, core))?;
                command.args(["haproxy", "-db", "-f"]).arg(path);
            }
            Self::Nginx => {
                let path = folder.join("nginx.conf");
                std::fs::write(&path, nginx(addr, ports))?;
                command.args(["nginx", "-p"]).arg(folder).arg("-c").arg(path);
            }
        }
        Running::start(command, addr).with_context(|| format!("starting {}", self.name()))
    }
}

fn haproxy(addr: SocketAddr, ports: &[u16], core: usize) -> String {
    let mut config = format!(
        "global\n    maxconn 8000\n    nbthread 1\n    cpu-map auto:1/1 {core}\n\
         defaults\n    mode http\n    timeout connect 5s\n    timeout http-request 10s\n    timeout client 60s\n    \
         timeout server 60s\n    timeout queue 10s\n    timeout tunnel 1h\n    option forwardfor\n\
         frontend ws\n    bind {addr} backlog 65535\n    default_backend app\n\
         backend app\n    balance leastconn\n"
    );
    for port in ports {
        let _ = writeln!(config, "    server s{port} 127.0.0.1:{port} weight 100");
    }
    config
}

fn nginx(addr: SocketAddr, ports: &[u16]) -> String {
    let mut servers = String::new();
    for port in ports {
        let _ = write!(servers, "server 127.0.0.1:{port} max_fails=0; ");
    }
    format!(
        "daemon off; worker_processes 1; pid nginx.pid; error_log stderr crit;\n\
         events {{ use epoll; worker_connections 8000; accept_mutex off; }}\n\
         http {{ access_log off; tcp_nodelay on;\n\
         client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi;\n\
         scgi_temp_path scgi;\n\
         map $http_upgrade $conn_up {{ default upgrade; '' close; }}\n\
         upstream app {{ zone app 256k; least_conn; {servers} }}\n\
         server {{ listen {addr} backlog=4096;\n\
         location / {{ proxy_pass http://app; proxy_http_version 1.1; proxy_set_header Host $host;\n\
         proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $conn_up;\n\
         proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;\n\
         proxy_read_timeout 1h; proxy_send_timeout 1h; proxy_buffer_size 4k; }} }} }}\n"
    )
}

/// A proxy at work, ended when dropped.
pub(super) struct Running {
    child: Child,
    pub(super) addr: SocketAddr,
}

impl Running {
    /// Starts a program and waits until it listens there.
    pub(super) fn start(mut command: Command, addr: SocketAddr) -> Result<Self> {
        let child = command.stdout(Stdio::null()).spawn()?;
        let mut running = Self { child, addr };
        running.await_listener()?;
        Ok(running)
    }

    fn await_listener(&mut self) -> Result<()> {
        for _ in 0..LOOKS {
            if let Some(status) = self.child.try_wait()? {
                bail!("it ended at once: {status}");
            }
            if TcpStream::connect(self.addr).is_ok() {
                return Ok(());
            }
            std::thread::sleep(LOOK_EACH);
        }
        bail!("it does not listen on {}", self.addr)
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }
}

/// CPU time of a process, its children and all their threads, from the scheduler.
pub(super) fn cpu_ns(process: u32) -> Result<u64> {
    let children = std::fs::read_to_string(format!("/proc/{process}/task/{process}/children"))?;
    let processes = children.split_whitespace().map(str::to_owned).chain([process.to_string()]);
    let mut sum = 0;
    for process in processes {
        for thread in std::fs::read_dir(format!("/proc/{process}/task"))? {
            let text = std::fs::read_to_string(thread?.path().join("schedstat"))?;
            sum += text.split(' ').next().unwrap_or_default().parse::<u64>()?;
        }
    }
    Ok(sum)
}

impl Drop for Running {
    fn drop(&mut self) {
        let id = self.child.id();
        // Nicely, so that a proxy's own children end with it.
        let asked = Command::new("kill")
            .args(["-TERM", &id.to_string()])
            .status()
            .is_ok_and(|status| status.success());
        for _ in 0..LOOKS {
            if !asked || matches!(self.child.try_wait(), Ok(Some(_)) | Err(_)) {
                break;
            }
            std::thread::sleep(LOOK_EACH);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
