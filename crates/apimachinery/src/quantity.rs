//! Quantities: fixed-point numbers with a decimal or binary suffix (`100m`, `1.5Gi`, `12e6`).
//!
//! Invariants:
//! - A quantity has no part smaller than a nano: parsing rounds away from zero.
//! - Printing is canonical (no fraction, largest possible suffix), with upstream's exception: a text that is nearly
//!   canonical already is kept as it was written. Clients see it, so the same texts are kept here.
//! - Comparison is by value: `1` and `1000m` are equal, although they print differently.
//!
//! Numbers hold 36 decimal digits; longer ones are refused.
//!
//! Follows: `k8s.io/apimachinery/pkg/api/resource`.

use std::cmp::Ordering;
use std::fmt;

use crate::json::{Number, Value};

/// Which family of suffixes a quantity prints with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Format {
    /// `12e6`
    DecimalExponent,
    /// `12Mi`
    BinarySI,
    /// `12M`
    #[default]
    DecimalSI,
}

/// Why a text is no quantity; the texts are upstream's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    #[error("unable to parse numeric part of quantity")]
    Numeric,
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

const NANO: i32 = -9;
/// The number of decimal digits that upstream's 64-bit path takes.
const MAX_INT64_FACTORS: i32 = 18;

/// `value * 10^scale`.
#[derive(Clone, Debug, Default)]
pub struct Quantity {
    value: i128,
    scale: i32,
    format: Format,
    /// The text it was read from, when printing must repeat it.
    text: Option<String>,
}

/// The parts of a text, before any number is made of them.
struct Parts<'a> {
    negative: bool,
    /// Integer digits without leading zeros; `0` when there are none.
    integer: &'a str,
    fraction: &'a str,
    suffix: &'a str,
}

fn split(text: &str) -> Result<Parts<'_>, ParseError> {
    let b = text.as_bytes();
    let negative = b.first() == Some(&b'-');
    let mut at = usize::from(matches!(b.first(), Some(b'-' | b'+')));
    let run = |mut at: usize, keep: &dyn Fn(u8) -> bool| {
        while at < b.len() && keep(b[at]) {
            at += 1;
        }
        at
    };
    at = run(at, &|c| c == b'0');
    let integer_end = run(at, &|c| c.is_ascii_digit());
    let integer = if at == integer_end { "0" } else { &text[at..integer_end] };
    at = integer_end;
    let mut fraction = "";
    if b.get(at) == Some(&b'.') {
        let end = run(at + 1, &|c| c.is_ascii_digit());
        fraction = &text[at + 1..end];
        at = end;
    }
    let start = at;
    at = run(at, &|c| b"eEinumkKMGTP".contains(&c));
    if matches!(b.get(at), Some(b'-' | b'+')) {
        at += 1;
    }
    at = run(at, &|c| c.is_ascii_digit());
    if at != b.len() {
        return Err(ParseError::Format);
    }
    Ok(Parts { negative, integer, fraction, suffix: &text[start..] })
}

/// Base, exponent and format of a suffix.
fn interpret(suffix: &str) -> Result<(u32, i32, Format), ParseError> {
    Ok(match suffix {
        "" => (10, 0, Format::DecimalSI),
        "n" => (10, -9, Format::DecimalSI),
        "u" => (10, -6, Format::DecimalSI),
        "m" => (10, -3, Format::DecimalSI),
        "k" => (10, 3, Format::DecimalSI),
        "M" => (10, 6, Format::DecimalSI),
        "G" => (10, 9, Format::DecimalSI),
        "T" => (10, 12, Format::DecimalSI),
        "P" => (10, 15, Format::DecimalSI),
        "E" => (10, 18, Format::DecimalSI),
        "Ki" => (2, 10, Format::BinarySI),
        "Mi" => (2, 20, Format::BinarySI),
        "Gi" => (2, 30, Format::BinarySI),
        "Ti" => (2, 40, Format::BinarySI),
        "Pi" => (2, 50, Format::BinarySI),
        "Ei" => (2, 60, Format::BinarySI),
        _ => {
            let exponent = suffix.strip_prefix(['e', 'E']).ok_or(ParseError::Suffix)?;
            let exponent: i64 = exponent.parse().map_err(|_| ParseError::Suffix)?;
            // Upstream keeps the low 32 bits; such exponents have no use, so they are refused.
            (10, i32::try_from(exponent).map_err(|_| ParseError::Suffix)?, Format::DecimalExponent)
        }
    })
}

fn decimal_suffix(exponent: i32, format: Format) -> String {
    match (format, exponent) {
        (Format::DecimalExponent, 0) => String::new(),
        (Format::DecimalExponent, e) => format!("e{e}"),
        (_, -9) => "n".to_owned(),
        (_, -6) => "u".to_owned(),
        (_, -3) => "m".to_owned(),
        (_, 3) => "k".to_owned(),
        (_, 6) => "M".to_owned(),
        (_, 9) => "G".to_owned(),
        (_, 12) => "T".to_owned(),
        (_, 15) => "P".to_owned(),
        (_, 18) => "E".to_owned(),
        // There is no suffix beyond exa: upstream prints the bare number.
        _ => String::new(),
    }
}

/// `a / 10^digits`, rounded away from zero.
fn divide_rounding_up(a: i128, digits: u32) -> i128 {
    match 10i128.checked_pow(digits) {
        Some(divisor) => {
            let quotient = a / divisor;
            if a % divisor == 0 { quotient } else { quotient + a.signum() }
        }
        None => a.signum(),
    }
}

impl Quantity {
    /// A whole number.
    pub const fn new(value: i64, format: Format) -> Self {
        Quantity { value: value as i128, scale: 0, format, text: None }
    }

    /// Thousandths.
    pub const fn from_milli(value: i64, format: Format) -> Self {
        Quantity { value: value as i128, scale: -3, format, text: None }
    }

    /// Reads a quantity.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        if text.is_empty() {
            return Err(ParseError::Format);
        }
        if text == "0" {
            return Ok(Quantity { text: Some(text.to_owned()), ..Quantity::default() });
        }
        let parts = split(text)?;
        let (base, exponent, format) = interpret(parts.suffix)?;
        let digits = (parts.integer.len() + parts.fraction.len()) as i32;
        let fraction_digits = parts.fraction.len() as i32;

        // Short texts take upstream's 64-bit path, which is the one that keeps texts.
        let (precision, multiplier, exponent10) = match format {
            Format::BinarySI if parts.fraction.is_empty() => {
                (15 - digits - (exponent as f32 * 3.0 / 10.0) as i32 - 1, 1i64 << exponent, 0)
            }
            Format::BinarySI => (-1, 1, 0),
            _ => (MAX_INT64_FACTORS - digits, 1, exponent),
        };
        let scale = exponent10.saturating_sub(fraction_digits);
        if precision >= 0 && scale >= NANO {
            let shifted = format!("{}{}", parts.integer, parts.fraction);
            let number: i64 = shifted.parse().map_err(|_| ParseError::Numeric)?;
            if let Some(value) = number.checked_mul(multiplier) {
                let keep = match format {
                    Format::BinarySI => number & 7 != 0,
                    _ => scale % 3 == 0 && !shifted.ends_with("000") && !shifted.starts_with('0'),
                };
                let value = i128::from(if parts.negative { -value } else { value });
                return Ok(Quantity { value, scale, format, text: keep.then(|| text.to_owned()) });
            }
        }

        let (mut value, mut scale) = match accumulate(&parts) {
            Some(number) => number,
            // More integer digits than fit: a binary quantity is capped below anyway.
            None if base == 2 => (i128::MAX, 0),
            None => return Err(ParseError::Numeric),
        };
        if base == 2 {
            value = value.saturating_mul(1 << exponent);
        } else {
            scale = scale.saturating_add(exponent);
        }
        if scale < NANO {
            value = divide_rounding_up(value, scale.abs_diff(NANO));
            scale = NANO;
        }
        let mut out = Quantity { value, scale, format, text: None };
        if format == Format::BinarySI {
            if out > Quantity::new(i64::MAX, format) {
                out = Quantity::new(i64::MAX, format);
            }
            if out.value > 0 && out < Quantity::new(1, format) {
                out.format = Format::DecimalSI;
            }
        }
        if parts.negative {
            out.value = -out.value;
        }
        Ok(out)
    }

    /// Reads a quantity from a tree: a string or a number.
    pub fn from_value(value: &Value) -> Result<Self, ParseError> {
        match value {
            Value::Null => Ok(Quantity::default()),
            Value::String(s) => Quantity::parse(s.trim()),
            Value::Number(Number::Int(i)) => Quantity::parse(&i.to_string()),
            Value::Number(Number::UInt(u)) => Quantity::parse(&u.to_string()),
            Value::Number(Number::Float(f)) => Quantity::parse(&crate::text::float(*f)),
            _ => Err(ParseError::Format),
        }
    }

    pub fn format(&self) -> Format {
        self.format
    }

    pub fn is_zero(&self) -> bool {
        self.value == 0
    }

    /// -1, 0 or 1.
    pub fn sign(&self) -> i32 {
        self.value.signum() as i32
    }

    /// The whole number, rounded away from zero; at most `i64::MAX`.
    pub fn value(&self) -> i64 {
        self.scaled_value(0)
    }

    /// In thousandths, rounded away from zero; at most `i64::MAX`.
    pub fn milli_value(&self) -> i64 {
        self.scaled_value(-3)
    }

    /// In units of `10^scale`.
    pub fn scaled_value(&self, scale: i32) -> i64 {
        let value = if self.scale < scale {
            divide_rounding_up(self.value, self.scale.abs_diff(scale))
        } else {
            match 10i128.checked_pow(self.scale.abs_diff(scale)).and_then(|p| self.value.checked_mul(p)) {
                Some(value) => value,
                None => self.value.signum().saturating_mul(i128::MAX),
            }
        };
        i64::try_from(value).unwrap_or(if value > 0 { i64::MAX } else { i64::MIN })
    }

    /// The number exactly, when it is a whole one that fits.
    pub fn as_i64(&self) -> Option<i64> {
        let value = self.value();
        (*self == Quantity::new(value, self.format)).then_some(value)
    }

    pub fn as_f64(&self) -> f64 {
        self.value as f64 * 10f64.powi(self.scale)
    }

    /// Adds; a zero takes the other's format.
    pub fn add(&mut self, other: &Quantity) {
        self.text = None;
        if self.value == 0 {
            self.format = other.format;
        }
        match self.scale.cmp(&other.scale) {
            Ordering::Equal => self.value = self.value.saturating_add(other.value),
            _ if other.value == 0 => {}
            _ if self.value == 0 => (self.value, self.scale) = (other.value, other.scale),
            _ => {
                let scale = self.scale.min(other.scale);
                self.value = rescaled(self, scale).saturating_add(rescaled(other, scale));
                self.scale = scale;
            }
        }
    }

    /// Subtracts; a zero takes the other's format.
    pub fn sub(&mut self, other: &Quantity) {
        self.add(&other.negated());
    }

    pub fn negated(&self) -> Quantity {
        Quantity { value: -self.value, scale: self.scale, format: self.format, text: None }
    }

    fn canonical(&self) -> String {
        if self.value == 0 {
            return "0".to_owned();
        }
        if self.format == Format::BinarySI
            && (*self <= Quantity::new(-1024, self.format) || *self >= Quantity::new(1024, self.format))
            && let Some(mut amount) = self.exact_integer()
        {
            let mut exponent = 0;
            while amount % 1024 == 0 {
                amount /= 1024;
                exponent += 1;
            }
            let suffix = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"].get(exponent).unwrap_or(&"");
            return format!("{amount}{suffix}");
        }
        let format = if self.format == Format::BinarySI { Format::DecimalSI } else { self.format };
        let (mut amount, mut exponent) = (self.value, self.scale);
        while amount % 10 == 0 {
            amount /= 10;
            exponent = exponent.saturating_add(1);
        }
        let zeros = exponent.rem_euclid(3);
        exponent -= zeros;
        format!("{amount}{}{}", &"00"[..zeros as usize], decimal_suffix(exponent, format))
    }

    fn exact_integer(&self) -> Option<i128> {
        if self.scale >= 0 {
            return 10i128.checked_pow(self.scale as u32)?.checked_mul(self.value);
        }
        let divisor = 10i128.checked_pow(self.scale.unsigned_abs())?;
        (self.value % divisor == 0).then(|| self.value / divisor)
    }
}

/// Two digits below what the type holds: printing appends up to two zeros.
const MAX_VALUE: i128 = 10i128.pow(36);

/// The digits as `value * 10^scale`; `None` when the integer digits do not fit.
fn accumulate(parts: &Parts<'_>) -> Option<(i128, i32)> {
    let append = |value: i128, digit: u8| Some(value * 10 + i128::from(digit - b'0')).filter(|v| *v < MAX_VALUE);
    let mut value: i128 = 0;
    // Zeros at the end are a matter of scale: they must not use up the digits.
    let whole = parts.fraction.bytes().all(|d| d == b'0');
    let digits = if whole { parts.integer.trim_end_matches('0') } else { parts.integer };
    for digit in digits.bytes() {
        value = append(value, digit)?;
    }
    let mut scale = (parts.integer.len() - digits.len()) as i32;
    if whole {
        return Some((value, scale));
    }
    for (i, digit) in parts.fraction.bytes().enumerate() {
        match append(value, digit) {
            Some(next) => {
                value = next;
                scale -= 1;
            }
            None => {
                // The rest is far below a nano and only decides whether rounding goes up.
                if parts.fraction.as_bytes()[i..].iter().any(|d| *d != b'0') {
                    value += 1;
                }
                break;
            }
        }
    }
    Some((value, scale))
}

fn rescaled(q: &Quantity, scale: i32) -> i128 {
    match 10i128.checked_pow(q.scale.abs_diff(scale)) {
        Some(factor) => q.value.saturating_mul(factor),
        None => q.value.signum().saturating_mul(i128::MAX),
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.text {
            Some(text) => f.write_str(text),
            None => f.write_str(&self.canonical()),
        }
    }
}

impl std::str::FromStr for Quantity {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        Quantity::parse(text)
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        if self.value.signum() != other.value.signum() || self.value == 0 || self.scale == other.scale {
            return self.value.cmp(&other.value);
        }
        let scale = self.scale.min(other.scale);
        let scaled = |q: &Quantity| 10i128.checked_pow(q.scale.abs_diff(scale)).and_then(|p| p.checked_mul(q.value));
        match (scaled(self), scaled(other)) {
            (Some(a), Some(b)) => a.cmp(&b),
            // Only the one with the larger scale can fail to fit, and then it is the larger one in magnitude.
            (None, _) => self.value.signum().cmp(&0),
            (_, None) => 0.cmp(&other.value.signum()),
        }
    }
}

impl From<&Quantity> for Value {
    fn from(q: &Quantity) -> Value {
        q.to_string().into()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn quantities_print_canonically() {
        // Rows from `quantity_test.go` and the documented rules.
        for (input, want) in [
            ("0", "0"),
            ("00", "0"),
            ("0Ki", "0"),
            ("-0", "0"),
            ("1", "1"),
            ("+1", "+1"),
            ("1000", "1k"),
            ("1000m", "1"),
            ("100m", "100m"),
            ("0.1", "100m"),
            ("0.5", "500m"),
            ("1.5", "1500m"),
            ("1.500", "1.500"),
            ("1.0", "1"),
            ("0.001n", "1n"),
            ("1e-10", "1e-9"),
            ("-1e-10", "-1e-9"),
            ("1e3", "1e3"),
            ("1000e3", "1e6"),
            ("10e4", "100e3"),
            ("12E6", "12E6"),
            ("1E", "1E"),
            ("1024Ki", "1Mi"),
            ("1Ki", "1Ki"),
            ("1023Ki", "1023Ki"),
            ("8Ki", "8Ki"),
            ("0.5Mi", "512Ki"),
            ("1.5Gi", "1536Mi"),
            ("1.1Ki", "1126400m"),
            ("0.5Ki", "512"),
            ("0.0001Ki", "102400u"),
            ("1Ei", "1Ei"),
            ("100Ei", "9223372036854775807"),
            ("9223372036854775807", "9223372036854775807"),
            ("9223372036854775808", "9223372036854775808"),
            ("999999999999999999999999", "999999999999999999999999"),
            ("1000000E", "1"),
            ("1e100", "10e99"),
            ("0.000000000000000000000000000000000000000000001", "1n"),
            ("5G", "5G"),
            ("05G", "05G"),
            ("1234567.891234567", "1234567.891234567"),
            (".5", "500m"),
            ("5.", "5."),
            ("128974848", "128974848"),
            ("129e6", "129e6"),
            ("123Mi", "123Mi"),
        ] {
            let got = Quantity::parse(input).map(|q| q.to_string());
            assert_eq!(got.as_deref(), Ok(want), "{input}");
        }
    }

    #[test]
    fn bad_quantities_are_refused_with_upstreams_text() {
        for (input, want) in [
            ("", ParseError::Format),
            ("a", ParseError::Format),
            ("1a", ParseError::Format),
            ("1 ", ParseError::Format),
            ("--1", ParseError::Suffix),
            ("1.1.1", ParseError::Format),
            ("1ki", ParseError::Suffix),
            ("1K", ParseError::Suffix),
            ("1mi", ParseError::Suffix),
            ("1e", ParseError::Suffix),
            ("1e1.5", ParseError::Format),
            ("1+5", ParseError::Suffix),
        ] {
            assert_eq!(Quantity::parse(input).map(|q| q.to_string()), Err(want), "{input:?}");
        }
    }

    #[test]
    fn equal_amounts_compare_equal_in_any_spelling() {
        let q = |s: &str| Quantity::parse(s).unwrap_or_else(|e| panic!("{s}: {e}"));
        for (a, b, want) in [
            ("1", "1000m", Ordering::Equal),
            ("1Ki", "1024", Ordering::Equal),
            ("1Ki", "1k", Ordering::Greater),
            ("-1", "1n", Ordering::Less),
            ("1e100", "1e99", Ordering::Greater),
            ("-1e100", "-1", Ordering::Less),
            ("1n", "1e100", Ordering::Less),
        ] {
            assert_eq!(q(a).cmp(&q(b)), want, "{a} {b}");
        }
        assert_eq!((q("1.2").value(), q("-1.2").value(), q("1.2").milli_value()), (2, -2, 1200));
        let mut sum = q("0");
        sum.add(&q("1Gi"));
        sum.add(&q("512Mi"));
        assert_eq!(sum.to_string(), "1536Mi");
        sum.sub(&q("100m"));
        assert_eq!(sum.to_string(), "1610612735900m");
        assert_eq!(Quantity::from_value(&crate::json!(2.5)).map(|q| q.to_string()).as_deref(), Ok("2500m"));
    }

    proptest! {
        #[test]
        fn printing_keeps_the_amount(text in "[+-]?[0-9]{1,12}(\\.[0-9]{0,10})?(|n|u|m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei|e[0-9]|e-[0-9])") {
            let q = Quantity::parse(&text).map_err(|e| TestCaseError::fail(format!("{text}: {e}")))?;
            let canonical = q.negated().negated().to_string();
            // Beyond exa there is no suffix and upstream drops the exponent.
            prop_assume!(q.format() == Format::DecimalExponent || q.value() < i64::MAX && q.value() > i64::MIN);
            let again = Quantity::parse(&canonical).map_err(|e| TestCaseError::fail(format!("{canonical}: {e}")))?;
            prop_assert_eq!(&again, &q, "{} prints as {}", text, canonical);
            prop_assert_eq!(again.negated().negated().to_string(), canonical);
        }

        #[test]
        fn adding_and_subtracting_cancel(a in any::<i32>(), b in any::<i32>(), sa in 0usize..4, sb in 0usize..4) {
            let suffixes = ["m", "", "k", "Mi"];
            let (a, b) = (format!("{a}{}", suffixes[sa]), format!("{b}{}", suffixes[sb]));
            let (qa, qb) = (Quantity::parse(&a).unwrap_or_default(), Quantity::parse(&b).unwrap_or_default());
            let mut sum = qa.clone();
            sum.add(&qb);
            sum.sub(&qb);
            prop_assert_eq!(sum, qa);
        }

        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,12}") {
            let _ = Quantity::parse(&text);
        }
    }

    #[test]
    fn zeros_at_the_end_do_not_use_up_the_digits() {
        for text in ["30222222222222214.5133005113022222222222033300530222222222222222222222222222E3333332", "1e40"] {
            let quantity = Quantity::parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(Quantity::parse(&quantity.to_string()), Ok(quantity), "{text}");
        }
    }
}
