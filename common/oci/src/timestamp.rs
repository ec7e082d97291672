//! Points in time as image configs write them.

use std::str::FromStr;

/// A point in time in UTC, to the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(i64);

/// Says that a text is not a point in time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not an RFC 3339 time")]
pub struct TimestampError;

/// First second of year 0 and last of year 9999.
const FIRST: i64 = -62_167_219_200;
const LAST: i64 = 253_402_300_799;

const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

impl Timestamp {
    /// From seconds since 1970.
    pub const fn from_unix(seconds: i64) -> Self {
        Self(seconds)
    }

    /// Seconds since 1970; negative before.
    pub const fn unix(self) -> i64 {
        self.0
    }

    /// Year, month (1 to 12), day, hour, minute, second.
    fn civil(self) -> (i64, u32, u32, u32, u32, u32) {
        let (days, second) = (self.0.div_euclid(86400), self.0.rem_euclid(86400));
        // Gregorian calendar in eras of 400 years (146,097 days) that start on
        // 1 March, so that the leap day comes last; 719,468 days lie between
        // 1 March of year 0 and 1 January 1970.
        let shifted = days + 719_468;
        let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted_month = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
        let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
        let year = era * 400 + year_of_era + i64::from(month <= 2);
        let small = |number: i64| u32::try_from(number).unwrap_or(0);
        (year, small(month), small(day), small(second / 3600), small(second / 60 % 60), small(second % 60))
    }

    /// As the established tools write a build date: `Monday_2_August_2021_14:9:36_UTC`.
    pub fn label(self) -> String {
        let (year, month, day, hour, minute, second) = self.civil();
        // The remainder is 0 to 6, and 1 January 1970 was a Thursday.
        let week_day = DAYS[usize::try_from(self.0.div_euclid(86400).rem_euclid(7)).unwrap_or(0)];
        let month = MONTHS[month as usize - 1];
        format!("{week_day}_{day}_{month}_{year}_{hour}:{minute}:{second}_UTC")
    }

    /// As RFC 3339 has it: `2021-08-02T14:09:36Z`.
    pub fn rfc3339(self) -> String {
        let (year, month, day, hour, minute, second) = self.civil();
        format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
    }
}

impl FromStr for Timestamp {
    type Err = TimestampError;

    /// Parses RFC 3339; fractions of a second are dropped.
    fn from_str(text: &str) -> Result<Self, TimestampError> {
        parse(text.as_bytes()).map(Self).ok_or(TimestampError)
    }
}

fn parse(text: &[u8]) -> Option<i64> {
    let number = |from: usize, to: usize| -> Option<i64> {
        let digits = text.get(from..to)?;
        digits.iter().try_fold(0, |sum, digit| digit.is_ascii_digit().then(|| sum * 10 + i64::from(digit - b'0')))
    };
    let is = |at: usize, wanted: &[u8]| text.get(at).is_some_and(|byte| wanted.contains(byte));
    let punctuated = is(4, b"-") && is(7, b"-") && is(10, b"Tt ") && is(13, b":") && is(16, b":");
    if !punctuated {
        return None;
    }
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    let leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    let last_day = match month {
        2 => 28 + i64::from(leap),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    };
    if !(1..=12).contains(&month) || !(1..=last_day).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let mut at = 19;
    if is(at, b".") {
        let digits = text[at + 1..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        if digits == 0 {
            return None;
        }
        at += 1 + digits;
    }
    let east = match text.get(at)? {
        b'Z' | b'z' if text.len() == at + 1 => 0,
        sign @ (b'+' | b'-') if text.len() == at + 6 && is(at + 3, b":") => {
            let (hours, minutes) = (number(at + 1, at + 3)?, number(at + 4, at + 6)?);
            if hours > 23 || minutes > 59 {
                return None;
            }
            (hours * 3600 + minutes * 60) * if *sign == b'+' { 1 } else { -1 }
        }
        _ => return None,
    };
    // The inverse of `civil`.
    let (shifted_year, shifted_month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let (era, year_of_era) = (shifted_year.div_euclid(400), shifted_year.rem_euclid(400));
    let day_of_year = (153 * shifted_month + 2) / 5 + day - 1;
    let days = era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468;
    let seconds = days * 86400 + hour * 3600 + minute * 60 + second - east;
    // An offset may lead out of the years that have four digits.
    (FIRST..=LAST).contains(&seconds).then_some(seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_in_all_forms() {
        let cases = [
            ("1970-01-01T00:00:00Z", 0),
            ("2020-06-30T00:01:56Z", 1_593_475_316),
            ("2020-06-30T00:01:56.123456789Z", 1_593_475_316),
            ("2020-06-30T02:01:56+02:00", 1_593_475_316),
            ("2020-06-29T19:31:56-04:30", 1_593_475_316),
            ("0001-01-01T00:00:00Z", -62_135_596_800),
            ("2000-02-29T23:59:59Z", 951_868_799),
        ];
        for (text, seconds) in cases {
            assert_eq!(text.parse::<Timestamp>().map(Timestamp::unix), Ok(seconds), "{text}");
        }
        for bad in [
            "",
            "2020-06-30",
            "2020-06-30T00:01:56",
            "2020-06-30T00:01:56.Z",
            "2020-13-30T00:01:56Z",
            "2021-02-29T00:00:00Z",
            "2020-06-30T24:01:56Z",
            "2020-06-30T00:01:56Zx",
            "2020-06-30T00:01:56+2:00",
            "2020-06-30T00:01:5éZ",
            "0000-01-01T00:00:00+00:01",
            "9999-12-31T23:59:59-00:01",
        ] {
            assert!(bad.parse::<Timestamp>().is_err(), "accepted {bad:?}");
        }
    }

    #[test]
    fn written_forms_are_those_of_the_established_tools() {
        assert_eq!(Timestamp(1_627_913_376).label(), "Monday_2_August_2021_14:9:36_UTC");
        assert_eq!(Timestamp(0).label(), "Thursday_1_January_1970_0:0:0_UTC");
        for seconds in [0, -1, 951_782_400, 951_868_799, 4_102_444_800, 1_709_164_800, FIRST, LAST] {
            let text = Timestamp(seconds).rfc3339();
            assert_eq!(text.parse::<Timestamp>().map(Timestamp::unix), Ok(seconds), "{text}");
        }
    }
}
