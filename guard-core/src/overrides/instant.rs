//! Instants of RFC 3339.

use std::time::{Duration, UNIX_EPOCH};

/// Seconds since 1970 of a text such as `2026-02-01T03:00:00Z` or `2026-02-01T04:00:00+01:00`. An error says what would
/// be one.
pub(super) fn parse(text: &str) -> Result<i64, String> {
    let shown: String = text.chars().take(40).collect();
    parsed(text).ok_or_else(|| format!("{shown:?} is not an instant of RFC 3339, like 2026-02-01T03:00:00Z"))
}

fn parsed(text: &str) -> Option<i64> {
    // No more than a date, a time, nine digits of a second and an offset.
    let text = (text.is_ascii() && text.len() <= 35).then(|| text.to_ascii_uppercase())?;
    let (local, ahead) = match text.strip_suffix('Z') {
        Some(local) => (local, 0),
        None => {
            text.split_at_checked(text.len().checked_sub(6)?).and_then(|(local, zone)| Some((local, offset(zone)?)))?
        }
    };
    let since = humantime::parse_rfc3339(&format!("{local}Z")).ok()?.duration_since(UNIX_EPOCH).ok()?;
    i64::try_from(since.as_secs()).ok()?.checked_sub(ahead)
}

/// Seconds of an offset such as `+01:00`.
fn offset(zone: &str) -> Option<i64> {
    let (sign, rest) = match zone.as_bytes().first()? {
        b'+' => (1, zone.get(1..)?),
        b'-' => (-1, zone.get(1..)?),
        _ => return None,
    };
    let (hours, minutes) = rest.split_once(':')?;
    let part = |text: &str, most: u64| {
        let digits = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse().ok().filter(|number| digits && *number <= most)
    };
    let length = Duration::from_hours(part(hours, 23)?) + Duration::from_mins(part(minutes, 59)?);
    Some(sign * i64::try_from(length.as_secs()).ok()?)
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn instants_of_rfc_3339_in_any_zone() {
        let cases = [
            ("1970-01-01T00:00:00Z", Some(0)),
            ("2026-02-01T03:00:00Z", Some(1_769_914_800)),
            ("2026-02-01t03:00:00.999z", Some(1_769_914_800)),
            ("2026-02-01T04:00:00+01:00", Some(1_769_914_800)),
            ("2026-01-31T21:30:00-05:30", Some(1_769_914_800)),
            ("2026-02-01T03:00:00", None),
            ("2026-02-01", None),
            ("2026-02-30T03:00:00Z", None),
            ("2026-02-01T03:00:00+0100", None),
            ("2026-02-01T03:00:00+24:00", None),
            ("2026-02-01T03:00:00*01:00", None),
            ("2026-02-01T03:00:00+1:000", None),
            ("tomorrow", None),
            ("é", None),
            ("", None),
        ];
        for (text, expected) in cases {
            assert_eq!(parse(text).ok(), expected, "{text}");
        }
        let error = parse("soon").expect_err("no instant");
        assert_eq!(error, "\"soon\" is not an instant of RFC 3339, like 2026-02-01T03:00:00Z");
    }
}
