//! Sizes as people read them.

/// Size with two decimals and a unit of 1024, such as `45.33 MiB`.
pub fn size_text(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    // 1023.999 would print as 1024.00.
    while value >= 1023.995 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.2} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_two_decimals() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (3410, "3.33 KiB"),
            (47_532_000, "45.33 MiB"),
            ((1 << 30) - 1, "1.00 GiB"),
            (u64::MAX, "16384.00 PiB"),
        ] {
            assert_eq!(size_text(bytes), text, "{bytes}");
        }
    }
}
