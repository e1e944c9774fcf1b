use super::*;

fn size(text: &str) -> Result<u64, String> {
    text.parse().map(Size::bytes).map_err(|error: UnitError| error.to_string())
}

fn rate(text: &str) -> Result<u64, String> {
    text.parse().map(Rate::bytes_per_second).map_err(|error: UnitError| error.to_string())
}

#[test]
fn sizes_have_the_units_that_operators_write() {
    let cases = [
        ("1B", 1),
        ("1KB", 1000),
        ("1kB", 1000),
        ("20MB", 20_000_000),
        ("20GB", 20_000_000_000),
        ("2TB", 2_000_000_000_000),
        ("1KiB", 1024),
        ("1Ki", 1024),
        ("500MiB", 500 << 20),
        ("500Mi", 500 << 20),
        ("20GiB", 20 << 30),
        ("20Gi", 20 << 30),
        ("3TiB", 3 << 40),
        ("3Ti", 3 << 40),
        ("1.5MiB", 3 << 19),
        ("0.0005KB", 1),
        ("64 KiB", 64 << 10),
        ("18446744073709551615B", u64::MAX),
        ("18446744073709.551615MB", u64::MAX),
    ];
    for (text, bytes) in cases {
        assert_eq!(size(text), Ok(bytes), "{text}");
    }
}

#[test]
fn rates_are_sizes_per_second_or_bits() {
    let cases = [
        ("50MiB/s", 50 << 20),
        ("100Mi/s", 100 << 20),
        ("1MB/s", 1_000_000),
        ("1.5MiB/s", 3 << 19),
        ("1B/s", 1),
        ("8bit/s", 1),
        ("12bit/s", 2),
        ("8Kbit/s", 1000),
        ("8kbit/s", 1000),
        ("400Mbit/s", 50_000_000),
        ("2.5Gbit/s", 312_500_000),
    ];
    for (text, bytes) in cases {
        assert_eq!(rate(text), Ok(bytes), "{text}");
    }
}

#[test]
fn a_refusal_says_what_to_write() {
    const ALONE: &str = "alone may mean bytes or bits, 1000 or 1024; write MB, MiB or Mbit/s";
    const UNITS: &str = "its unit must be B, KB, MB, GB, TB (1000), KiB, MiB, GiB, TiB, Ki, Mi, Gi or Ti (1024)";
    const B: &str = "\"b\" may mean bytes or bits; write MB for bytes, Mbit/s for bits";
    let sizes = [
        ("", "it must begin with a number"),
        ("MiB", "it must begin with a number"),
        ("-1MiB", "it must begin with a number"),
        (".5MiB", "it must begin with a number"),
        ("1024", "say the unit, B for bytes"),
        ("5m", &format!("\"m\" {ALONE}")),
        ("5G", &format!("\"G\" {ALONE}")),
        ("5Mb", B),
        ("5Mbit", "bits are for rates, as bit/s, Kbit/s, Mbit/s or Gbit/s"),
        ("5mib", B),
        ("5MIB", UNITS),
        ("5MiB/s", UNITS),
        ("5e3B", UNITS),
        ("1.MiB", "its number is none"),
        ("1.2.3MiB", "its number is none"),
        ("0GiB", "it is less than one byte"),
        ("0.4B", "it is less than one byte"),
        ("18446744073709551616B", "it is too large"),
        ("99999999999999999999999999999999999999999B", "it is too large"),
        ("17000000TiB", "it is too large"),
    ];
    for (text, why) in sizes {
        assert_eq!(size(text), Err(format!("{text:?} is not a size like 500MiB, 20GB or 1Gi: {why}")));
    }
    let rates = [
        ("50MiB", "add /s"),
        ("400Mbit", "add /s"),
        ("50", "say the unit, B for bytes"),
        ("50/s", "say the unit, B for bytes"),
        ("50M/s", &format!("\"M\" {ALONE}")),
        ("50Mb/s", B),
        ("50Mbps", "write MB/s for bytes, Mbit/s for bits"),
        ("1bit/s", "it is less than one byte"),
        ("50MiB/h", UNITS),
        ("fast", "it must begin with a number"),
    ];
    for (text, why) in rates {
        assert_eq!(rate(text), Err(format!("{text:?} is not a rate like 50MiB/s, 50MB/s or 400Mbit/s: {why}")));
    }
}

#[test]
fn what_is_shown_is_read_as_the_same() {
    for (bytes, shown) in [
        (1, "1B"),
        (1000, "1KB"),
        (1024, "1KiB"),
        (500 << 20, "500MiB"),
        (1_500_000, "1500KB"),
        (u64::MAX, "18446744073709551615B"),
    ] {
        assert_eq!(Size::new(bytes).map(|size| size.to_string()).as_deref(), Some(shown));
        assert_eq!(Rate::new(bytes).map(|rate| rate.to_string()), Some(format!("{shown}/s")));
    }
    for bytes in (0..63).flat_map(|power| [1 << power, (1 << power) + 1, 3 << (power / 2), 1000 << (power / 2)]) {
        let shown = Size::new(bytes).expect("not zero").to_string();
        assert_eq!(size(&shown), Ok(bytes), "{shown}");
    }
}

#[test]
fn durations() {
    for (text, millis) in
        [("500ms", 500), ("30s", 30_000), ("10m", 600_000), ("1h", 3_600_000), ("1d", 86_400_000), ("1m 30s", 90_000)]
    {
        assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
    }
    for text in ["", "10", "10x", "s", "-1s", "366d", "1000000000000000000000h"] {
        let expected = format!("{text:?} is not a duration like 500ms, 30s, 10m, 1h or 1d (at most 365d)");
        assert_eq!(duration(text).map_err(|error| error.to_string()), Err(expected));
    }
}
