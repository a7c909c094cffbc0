//! Sizes, durations and the like: as people write them, and as people read them.

use std::time::Duration;

use coord::{memory, record};
use protocol::control::{CaptureMode, Compression, Tracking};
use protocol::migration::MoveMode;

use crate::args::{EveryArg, Which};

/// A number of bytes: plain, or with K, M, G, T and optionally B or iB, all powers of 1024.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is no size; write e.g. 67108864, 64M or 64MiB");
    let digits = text.trim_end_matches(|letter: char| !letter.is_ascii_digit());
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    let unit = text[digits.len()..].trim().to_ascii_lowercase();
    let unit = unit.trim_end_matches('b').trim_end_matches('i');
    let shift = match unit {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return Err(wrong()),
    };
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| format!("{text:?} is more than can be counted"))
}

/// The value of `--every`.
pub fn parse_every(text: &str) -> Result<EveryArg, String> {
    match text {
        "off" => return Ok(EveryArg::Off),
        "auto" => return Ok(EveryArg::Auto),
        _ => {}
    }
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => {
            Err("the time must be longer than nothing; write off for none".into())
        }
        Ok(interval) => Ok(EveryArg::Interval(interval)),
        Err(error) => Err(format!("{error}; write e.g. 500ms, 30s, 10m, auto or off")),
    }
}

/// The value of `--every-min` and `--every-max`. Shorter times would be none in the job's record.
pub fn parse_interval(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(time) if time < Duration::from_millis(1) => Err("less than 1ms is no interval".into()),
        Ok(time) => Ok(time),
        Err(error) => Err(format!("{error}; write e.g. 30s or 10m")),
    }
}

/// The value of `--memory`.
pub fn parse_memory(text: &str) -> Result<u64, String> {
    match parse_bytes(text)? {
        budget if budget < memory::LEAST_BYTES => Err(format!(
            "a process can't store checkpoints with less than {}; write e.g. 512MiB",
            bytes(memory::LEAST_BYTES)
        )),
        budget => Ok(budget),
    }
}

/// The value of `--track`.
pub fn parse_tracking(text: &str) -> Result<Tracking, String> {
    one_of(text, &record::TRACKINGS)
}

/// The value of `--capture`.
pub fn parse_capture(text: &str) -> Result<CaptureMode, String> {
    one_of(text, &record::CAPTURES)
}

fn one_of<T: Copy>(text: &str, words: &[(&str, T)]) -> Result<T, String> {
    let found = words.iter().find(|(word, _)| *word == text);
    found.map(|(_, meaning)| *meaning).ok_or_else(|| {
        let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        format!("write one of {}", known.join(", "))
    })
}

/// The value of `--mode`.
pub fn parse_move_mode(text: &str) -> Result<MoveMode, String> {
    let words = [
        ("stop", MoveMode::Stop),
        ("precopy", MoveMode::Precopy),
        ("postcopy", MoveMode::Postcopy),
        ("checkpoint", MoveMode::Checkpoint),
        ("safepoint", MoveMode::Safepoint),
        ("auto", MoveMode::Auto),
    ];
    one_of(text, &words)
}

/// The value of `--heartbeat-timeout`.
pub fn parse_heartbeat(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(time) if time < Duration::from_millis(100) => {
            Err("less than 100ms would take a busy machine for a lost process".into())
        }
        Ok(time) => Ok(time),
        Err(error) => Err(format!("{error}; write e.g. 10s")),
    }
}

/// The value of `--compress`.
pub fn parse_compression(text: &str) -> Result<Compression, String> {
    match text {
        "auto" => Ok(Compression::Auto),
        "none" => Ok(Compression::None),
        "fast" => Ok(Compression::Fast),
        _ => match text.parse() {
            Ok(level @ 1..=22) => Ok(Compression::Level(level)),
            _ => Err("write auto, none, fast, or a level from 1 to 22".into()),
        },
    }
}

/// An epoch or `latest`.
pub fn parse_epoch(text: &str) -> Result<Which, String> {
    match text {
        "latest" => Ok(Which::Latest),
        _ => text
            .parse()
            .map(Which::Epoch)
            .map_err(|_| "write the number of a checkpoint (see ckpt ls), or latest".into()),
    }
}

/// Bytes for people: three digits and a binary unit.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    // From 999.5 on three digits no longer do.
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let decimals = match value {
        _ if value < 9.995 => 2,
        _ if value < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.decimals$} {}", UNITS[unit])
}

/// A time for people: three digits and a unit below a minute, whole units above.
pub fn time(time: Duration) -> String {
    let us = time.as_secs_f64() * 1e6;
    match us {
        _ if us < 999.5 => format!("{us:.0} µs"),
        _ if us < 9_995.0 => format!("{:.2} ms", us / 1e3),
        _ if us < 99_950.0 => format!("{:.1} ms", us / 1e3),
        _ if us < 999_500.0 => format!("{:.0} ms", us / 1e3),
        _ if us < 9_995_000.0 => format!("{:.2} s", us / 1e6),
        _ if us < 59_950_000.0 => format!("{:.1} s", us / 1e6),
        _ => humantime::format_duration(Duration::from_secs(time.as_secs())).to_string(),
    }
}

/// Microseconds for people.
pub fn time_us(us: u64) -> String {
    time(Duration::from_micros(us))
}

/// How many times smaller the files are than the images, or nothing where that says nothing.
pub fn ratio(raw_bytes: u64, file_bytes: u64) -> Option<f64> {
    (file_bytes > 0).then(|| raw_bytes as f64 / file_bytes as f64)
}

/// A moment for people, in UTC.
pub fn moment(unix_ms: u64) -> String {
    let moment = std::time::UNIX_EPOCH + Duration::from_millis(unix_ms);
    humantime::format_rfc3339_seconds(moment).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_and_without_units() {
        for (text, expected) in [
            ("4096", 4096),
            ("64K", 64 << 10),
            ("64MiB", 64 << 20),
            ("64 mb", 64 << 20),
            ("2G", 2 << 30),
            ("1TiB", 1 << 40),
        ] {
            assert_eq!(parse_bytes(text), Ok(expected), "{text}");
        }
        for wrong in ["", "G", "64X", "-1", "99999999999T", "1.5G"] {
            assert!(parse_bytes(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes_are_told_in_three_digits() {
        for (count, expected) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (1_047_527, "1.00 MiB"),
            (12_582_912, "12.0 MiB"),
            (256 << 20, "256 MiB"),
            (5 << 40, "5.00 TiB"),
        ] {
            assert_eq!(bytes(count), expected);
        }
    }

    #[test]
    fn times_are_told_in_three_digits() {
        assert_eq!(time_us(5), "5 µs");
        assert_eq!(time_us(1500), "1.50 ms");
        assert_eq!(time_us(15_000), "15.0 ms");
        assert_eq!(time_us(150_000), "150 ms");
        assert_eq!(time_us(1_500_000), "1.50 s");
        assert_eq!(time_us(90_000_000), "1m 30s");
    }

    #[test]
    fn off_and_times_are_read_and_nothing_is_no_time() {
        assert_eq!(parse_every("off"), Ok(EveryArg::Off));
        assert_eq!(parse_every("auto"), Ok(EveryArg::Auto));
        assert_eq!(
            parse_every("1500ms"),
            Ok(EveryArg::Interval(Duration::from_millis(1500)))
        );
        assert!(parse_every("0s").is_err());
        assert!(parse_every("soon").is_err());
        assert!(parse_heartbeat("5ms").is_err());
        assert!(parse_interval("10us").is_err());
    }

    #[test]
    fn words_are_read_and_others_are_told_what_there_is() {
        assert_eq!(parse_tracking("hash"), Ok(Tracking::Hash));
        assert_eq!(parse_capture("cow"), Ok(CaptureMode::CopyOnWrite));
        assert_eq!(parse_compression("auto"), Ok(Compression::Auto));
        let told = parse_tracking("soft-dirty").unwrap_err();
        assert_eq!(told, "write one of auto, kernel, hash, off");
        assert_eq!(parse_memory("32M"), Ok(32 << 20));
        assert!(parse_memory("31M").unwrap_err().contains("32.0 MiB"));
    }
}
