//! Durations as people write them: `"500ms"`, `"1m30s"`, `"1.5s"`. Exact to the nanosecond both ways, so that a
//! printed configuration reads back as the same one.

use std::time::Duration;

const UNITS: [(&str, u128); 7] = [
    ("d", 86_400_000_000_000),
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
];

/// Reads one or more numbers with units, added up. `None`: no number, no unit, or beyond 584 years.
pub(crate) fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    let mut total: u128 = 0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, after) = rest.split_at(digits);
        let letters = after.find(|c: char| !c.is_ascii_lowercase()).unwrap_or(after.len());
        let (unit, after) = after.split_at(letters);
        let (_, nanos) = UNITS.iter().find(|(name, _)| *name == unit)?;
        total = total.checked_add(scaled(number, *nanos)?)?;
        rest = after.trim_start();
    }
    let nanos = u64::try_from(total).ok()?;
    (!text.trim().is_empty()).then(|| Duration::from_nanos(nanos))
}

/// A decimal number times a unit, in whole nanoseconds.
fn scaled(number: &str, unit: u128) -> Option<u128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.len() + fraction.len() == 0 || whole.len() > 18 || fraction.len() > 18 {
        return None;
    }
    let whole: u128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let part: u128 = if fraction.is_empty() { 0 } else { fraction.parse().ok()? };
    let scale = 10u128.pow(u32::try_from(fraction.len()).ok()?);
    whole.checked_mul(unit)?.checked_add(part.checked_mul(unit)? / scale)
}

/// Writes a duration in the largest unit that leaves a short number.
pub(crate) fn show_duration(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    if nanos == 0 {
        return String::from("0s");
    }
    for (name, unit) in UNITS {
        if nanos.is_multiple_of(unit) && (name != "d" || nanos >= 2 * unit) {
            return format!("{}{name}", nanos / unit);
        }
        // Below a unit with no finer one fitting whole: decimals of a second.
        if name == "ms" && nanos > unit {
            let text = format!("{}.{:09}", nanos / 1_000_000_000, nanos % 1_000_000_000);
            return format!("{}s", text.trim_end_matches('0').trim_end_matches('.'));
        }
    }
    format!("{nanos}ns")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_people_write_them() {
        for (text, nanos) in [
            ("500ms", 500_000_000),
            ("20s", 20_000_000_000),
            ("1m30s", 90_000_000_000),
            ("1.5s", 1_500_000_000),
            ("10m", 600_000_000_000),
            ("2h", 7_200_000_000_000),
            ("0s", 0),
            ("1ns", 1),
        ] {
            assert_eq!(parse_duration(text), Some(Duration::from_nanos(nanos)), "{text}");
        }
    }

    #[test]
    fn durations_without_a_number_or_a_unit_are_refused() {
        for text in ["", " ", "5", "s", "5 parsecs", "-5s", "1..2s", ".s", "5S", "99999999999999999d", "NaNs"]
        {
            assert_eq!(parse_duration(text), None, "{text:?}");
        }
    }

    #[test]
    fn durations_shown_read_back_the_same() {
        for nanos in [
            0,
            1,
            999,
            1_000_000,
            1_500_000,
            85_714_285_714,
            600_000_000_000,
            90_000_000_000,
            86_400_000_000_000,
        ] {
            let duration = Duration::from_nanos(nanos);
            let text = show_duration(duration);
            assert_eq!(parse_duration(&text), Some(duration), "{text}");
        }
        assert_eq!(show_duration(Duration::from_secs(600)), "10m");
        assert_eq!(show_duration(Duration::from_millis(1_500)), "1500ms");
    }
}
