//! Orders to a running controller: `drain`, `undrain`, `cordon`, `shed`, `scale`.

use std::time::Duration;

use evenkeel_controller::api::Server;
use serde_json::{Value, json};

use crate::admin::{Admin, AdminError};
use crate::cli::{AdminArgs, DrainArgs, Output, ScaleArgs, ServerArgs, Servers, ShedArgs, exit};
use crate::config::unit::show_duration;
use crate::say::say;

/// Between two looks at a server that empties.
const LOOK: Duration = Duration::from_millis(200);

/// `drain`
pub(crate) async fn drain(args: &DrainArgs) -> anyhow::Result<u8> {
    let admin = Admin::find(&args.admin)?;
    let answer = order(&admin, &args.id, "drain", &json!({ "force": args.force })).await?;
    if args.wait {
        let waited = tokio::time::timeout(args.wait_timeout, drained(&admin, &args.id)).await;
        if waited.map_err(|_| {
            anyhow::anyhow!("{} is not empty after {:?}; it goes on draining", args.id, args.wait_timeout)
        })?? {
            return tell(&args.admin, &answer, &format!("{} is drained", args.id));
        }
        return tell(&args.admin, &answer, &format!("{} is drained and stopped", args.id));
    }
    let said = format!(
        "{id} is draining: no new connections from now on; `evenkeel undrain {id}` ends that",
        id = args.id
    );
    tell(&args.admin, &answer, &said)
}

/// Waits until a server is empty. True: it is still there.
async fn drained(admin: &Admin, id: &str) -> anyhow::Result<bool> {
    loop {
        match admin.get(&format!("/v1/servers/{}", escaped(id))).await {
            Ok(answer) => {
                let server: Server = serde_json::from_value(answer)?;
                match server.state.as_str() {
                    "drained" => return Ok(true),
                    "stopped" => return Ok(false),
                    "draining" => {}
                    other => anyhow::bail!("{id} is {other} now; the drain was ended"),
                }
            }
            // Stopped by its provider and forgotten.
            Err(AdminError::Refused { status: 404, .. }) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// `undrain`
pub(crate) async fn undrain(args: &ServerArgs) -> anyhow::Result<u8> {
    let answer = order(&Admin::find(&args.admin)?, &args.id, "undrain", &json!({})).await?;
    tell(&args.admin, &answer, &format!("{} takes connections again", args.id))
}

/// `cordon`
pub(crate) async fn cordon(args: &ServerArgs) -> anyhow::Result<u8> {
    let answer = order(&Admin::find(&args.admin)?, &args.id, "cordon", &json!({})).await?;
    let said = format!(
        "{id} takes no new connections and keeps those it has, until `evenkeel undrain {id}`",
        id = args.id
    );
    tell(&args.admin, &answer, &said)
}

/// `shed`
pub(crate) async fn shed(args: &ShedArgs) -> anyhow::Result<u8> {
    let answer = order(&Admin::find(&args.admin)?, &args.id, "shed", &json!({ "to": args.to })).await?;
    tell(&args.admin, &answer, &shedding(&args.id, args.to, &answer))
}

/// What a shed does, for how long, and how to end it.
fn shedding(id: &str, to: u32, answer: &Value) -> String {
    let ends = answer["desired"]["deadline_ms"].as_u64().map(|ms| Duration::from_secs(ms.div_ceil(1_000)));
    let lasts = ends.map_or_else(String::new, |ends| format!(" for {}", show_duration(ends)));
    format!("{id} is to hold at most {to} connections{lasts}; `evenkeel undrain {id}` ends that earlier")
}

/// `scale`
pub(crate) async fn scale(args: &ScaleArgs) -> anyhow::Result<u8> {
    let (servers, said) = match args.servers {
        Servers::Auto => (Value::Null, format!("{} is scaled by its policy again", args.fleet)),
        Servers::Fixed(0) => {
            let ends = "every server is drained and ended once it is empty, and none is started";
            (json!(0), format!("{fleet}: {ends}, until `evenkeel scale {fleet} auto`", fleet = args.fleet))
        }
        Servers::Fixed(servers) => (
            json!(servers),
            format!(
                "{fleet} is to have {servers} server(s), until `evenkeel scale {fleet} auto`",
                fleet = args.fleet
            ),
        ),
    };
    let path = format!("/v1/fleets/{}/scale", escaped(&args.fleet));
    let answer = Admin::find(&args.admin)?.post(&path, &json!({ "servers": servers })).await?;
    tell(&args.admin, &answer, &said)
}

async fn order(admin: &Admin, id: &str, order: &str, body: &Value) -> Result<Value, AdminError> {
    admin.post(&format!("/v1/servers/{}/{order}", escaped(id)), body).await
}

/// An id in a path. Ids need no escaping; whatever else was typed must not change the path.
fn escaped(id: &str) -> String {
    let byte = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-' => char::from(byte).to_string(),
        other => format!("%{other:02X}"),
    };
    id.bytes().map(byte).collect()
}

fn tell(args: &AdminArgs, answer: &Value, said: &str) -> anyhow::Result<u8> {
    match args.output {
        Output::Json => say!("{}", serde_json::to_string_pretty(answer)?),
        Output::Text => {
            say!("{said}");
            if let Some(warning) = answer["warning"].as_str() {
                eprintln!("warning: {warning}");
            }
        }
    }
    Ok(exit::OK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shed_says_how_long_it_lasts_and_how_to_end_it() {
        let said = shedding("a", 7, &json!({ "desired": { "deadline_ms": 599_998 } }));
        assert_eq!(
            said,
            "a is to hold at most 7 connections for 10m; `evenkeel undrain a` ends that earlier"
        );
    }

    #[test]
    fn what_is_typed_as_an_id_stays_one_path_segment() {
        assert_eq!(escaped("chat-3"), "chat-3");
        assert_eq!(escaped("../x?y z"), "..%2Fx%3Fy%20z");
    }
}
