//! Numbers in messages.

/// Groups digits: 1234567 → 1,234,567.
pub fn group_digits(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Formats a count with its noun: "1 image", "2,000 images".
pub fn pluralize(number: u64, one: &str, several: &str) -> String {
    format!("{} {}", group_digits(number), if number == 1 { one } else { several })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_singular_and_all_else_plural() {
        let images = |number| pluralize(number, "image", "images");
        assert_eq!([images(0), images(1), images(1_234_567)], ["0 images", "1 image", "1,234,567 images"]);
    }
}
