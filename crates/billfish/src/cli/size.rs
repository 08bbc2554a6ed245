//! Sizes in bytes as people write them.

/// Bytes of `4GB`, `512 MiB`, `1.5g` or `1000000`: B, KB, MB, GB and TB are powers of 1000, KiB to TiB of 1024.
///
/// # Errors
/// What was expected, in words.
pub fn bytes(text: &str) -> Result<u64, String> {
    let wrong = || format!("expected a size such as 4GB, 512MiB or 1000000, found `{text}`");
    let lower = text.trim().to_ascii_lowercase();
    let split = lower.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(lower.len());
    let (number, unit) = lower.split_at(split);
    let factor = match unit.trim() {
        "" | "b" => 1.0,
        "k" | "kb" => 1e3,
        "m" | "mb" => 1e6,
        "g" | "gb" => 1e9,
        "t" | "tb" => 1e12,
        "kib" => f64::from(1u32 << 10),
        "mib" => f64::from(1u32 << 20),
        "gib" => f64::from(1u32 << 30),
        "tib" => f64::from(1u32 << 30) * 1024.0,
        _ => return Err(wrong()),
    };
    let size = number.parse::<f64>().map_err(|_| wrong())? * factor;
    // beyond that a double does not hold every whole number, and no machine has as much
    if (1.0..9e15).contains(&size) { Ok(size.round() as u64) } else { Err(wrong()) }
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn sizes() {
        let legal = [
            ("1", 1),
            ("4GB", 4_000_000_000),
            ("4g", 4_000_000_000),
            ("1.5 GiB", 3 << 29),
            ("512MiB", 512 << 20),
            ("2tib", 2 << 40),
            (" 7 kb ", 7000),
            ("0.5MB", 500_000),
        ];
        for (text, expected) in legal {
            assert_eq!(bytes(text), Ok(expected), "{text}");
        }
        for text in ["", "GB", "-1GB", "4 gigabytes", "1e9", "0", "nan", "inf", "1.2.3MB", "99999TB"] {
            assert!(bytes(text).unwrap_err().contains(text), "{text}");
        }
    }
}
