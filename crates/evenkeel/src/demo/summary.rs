//! The last words of the demo.

use std::net::SocketAddr;

use super::observe::Sample;
use super::plan::Act;
use super::story::Told;
use crate::cli::DemoArgs;
use crate::config::Settings;
use crate::table::table;

/// What happened, in numbers, and whether it was well.
pub(crate) fn text(args: &DemoArgs, told: &Told) -> String {
    let counts = &told.counts;
    let mut lines = vec![
        String::new(),
        String::from("Summary"),
        format!(
            "  connections   {} placed, of these {} moved; {} handshake(s) failed; worst handshake {} ms",
            counts.placed,
            counts.moved,
            counts.failed,
            counts.worst_handshake.as_millis()
        ),
        format!(
            "  servers       2 at first, {} at most, {} at the end{}",
            told.servers_most,
            told.servers_last,
            deeds(told)
        ),
        format!(
            "  messages      {} sent, {} echoed{}, {}",
            counts.sent,
            counts.echoed,
            under_way(told),
            lost(told)
        ),
    ];
    let mut ends = counts.ends.iter().map(|(end, count)| format!("{count} × {end}")).collect::<Vec<_>>();
    if ends.is_empty() {
        ends.push(String::from("none"));
    }
    lines.push(format!("  closes        {}", ends.join(", ")));
    lines.push(String::from("  fullest server's utilisation over the mean (1 is perfectly even):"));
    lines.extend(evenness(&told.samples).lines().map(|line| format!("    {line}")));
    for unseen in &told.unseen {
        lines.push(format!("  not shown     {unseen}"));
    }
    lines.push(String::new());
    if told.broken.is_empty() {
        lines.push(String::from(
            "Every invariant held: nothing was placed on a draining server, no server was stopped while it held connections,",
        ));
        lines.push(String::from(
            "no handshake failed after the kill, no message was lost but on paced closes and on the killed server.",
        ));
    } else {
        lines.push(format!("{} invariant(s) BROKE:", told.broken.len()));
        lines.extend(told.broken.iter().map(|broken| format!("  {broken}")));
        lines.push(format!(
            "again with the same clients: evenkeel demo --clients {} --seed {}",
            args.clients, args.seed
        ));
    }
    lines.join("\n")
}

fn deeds(told: &Told) -> String {
    let killed = told.deeds.killed.as_ref().map(|(id, _)| format!("; {id} was killed")).unwrap_or_default();
    let drained = told
        .deeds
        .drained
        .as_ref()
        .map(|(id, _)| format!("; {id} was drained on purpose"))
        .unwrap_or_default();
    format!("{killed}{drained}")
}

fn under_way(told: &Told) -> String {
    if told.under_way == 0 { String::new() } else { format!(", {} under way", told.under_way) }
}

fn lost(told: &Told) -> String {
    let lost = told.lost;
    format!(
        "{} lost: {} on paced closes, {} with the killed server, {} otherwise",
        lost.paced + lost.killed + lost.unexpected,
        lost.paced,
        lost.killed,
        lost.unexpected
    )
}

/// One line for each act.
fn evenness(samples: &[Sample]) -> String {
    let row = |(act, _): &(Act, f64)| {
        let own: Vec<f64> = samples.iter().filter(|it| it.act == *act).map(|it| it.max_over_mean).collect();
        let level: Vec<f64> = samples.iter().filter(|it| it.act == *act).map(|it| it.mean).collect();
        if own.is_empty() {
            return vec![
                act.name().to_owned(),
                String::from("-"),
                String::from("-"),
                String::from("-"),
                String::from("-"),
            ];
        }
        vec![
            act.name().to_owned(),
            format!("{:.2}", mean(&own)),
            format!("{:.2}", own.iter().copied().fold(0.0, f64::max)),
            format!("{:.2}", own.last().copied().unwrap_or_default()),
            format!("{:.0} %", 100.0 * mean(&level)),
        ]
    };
    table(&["ACT", "MEAN", "WORST", "LAST", "UTILISATION"], &Act::ALL.iter().map(row).collect::<Vec<_>>())
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// What to look at while the demo stays up.
pub(crate) fn kept(settings: &Settings, gateway: SocketAddr, admin: SocketAddr) -> String {
    let token = settings.admin.token_file.display();
    let how = format!("--admin http://{admin} --token-file {token}");
    format!(
        "\nStays up until Ctrl-C, with the last clients:\n  ws://{gateway}   echoes whatever is sent\n  http://{admin}/metrics   with the bearer token in {token}\n  evenkeel status {how}\n  evenkeel events --follow {how}\n  evenkeel drain ID --wait {how}"
    )
}
