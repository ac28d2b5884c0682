//! The last words of the demo.

use std::net::SocketAddr;

use super::observe::Sample;
use super::plan::Act;
use super::story::Told;
use crate::cli::DemoArgs;
use crate::config::Settings;
use crate::table::table;

/// Points of the figures over time.
const POINTS: u32 = 18;

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
    lines.push(String::from(
        "  evenness      utilisation of the fullest server over the mean; 1 is perfectly even",
    ));
    lines.extend(evenness(told).lines().map(|line| format!("    {line}")));
    lines.push(String::from(
        "    LC: leastconn without moves, same arrivals and servers, from the simulator; the rest is measured",
    ));
    lines.push(format!("    over time     {}", over_time(&told.samples, args.duration)));
    lines.push(format!("    LC over time  {}", over_time(&told.leastconn, args.duration)));
    for unseen in &told.unseen {
        lines.push(format!("  not shown     {unseen}"));
    }
    lines.push(String::new());
    if told.broken.is_empty() {
        lines.push(String::from(
            "Every invariant held: nothing was placed on a draining server, no server was stopped while it",
        ));
        lines.push(String::from(
            "held connections, no handshake failed after the kill, no message was lost but on paced closes",
        ));
        lines.push(String::from("and on the killed server."));
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

/// One line for each act: what was measured, and beside it what the simulator says of `leastconn`.
fn evenness(told: &Told) -> String {
    let row = |(act, _): &(Act, f64)| {
        let mut row = vec![act.name().to_owned()];
        for samples in [&told.samples, &told.leastconn] {
            let own: Vec<f64> =
                samples.iter().filter(|it| it.act == *act).map(|it| it.max_over_mean).collect();
            let figure =
                |figure: f64| if own.is_empty() { String::from("-") } else { format!("{figure:.2}") };
            row.push(figure(mean(&own)));
            row.push(figure(own.iter().copied().fold(0.0, f64::max)));
            row.push(figure(own.last().copied().unwrap_or_default()));
        }
        let level: Vec<f64> = told.samples.iter().filter(|it| it.act == *act).map(|it| it.mean).collect();
        row.push(format!("{:.0} %", 100.0 * mean(&level)));
        row
    };
    let head = ["ACT", "MEAN", "WORST", "LAST", "LC MEAN", "LC WORST", "LC LAST", "UTILISATION"];
    table(&head, &Act::ALL.iter().map(row).collect::<Vec<_>>())
}

/// The figures over time, evenly spaced.
fn over_time(samples: &[Sample], of: std::time::Duration) -> String {
    let step = of.as_secs_f64() / f64::from(POINTS);
    let point = |index: u32| {
        let own: Vec<f64> = samples
            .iter()
            .filter(|it| (it.at.as_secs_f64() / step) as u32 == index)
            .map(|it| it.max_over_mean)
            .collect();
        if own.is_empty() { String::from("   -") } else { format!("{:.2}", mean(&own)) }
    };
    (0..POINTS).map(point).collect::<Vec<_>>().join(" ")
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
