//! Several measurements of one figure.

use std::fmt::{self, Display};

/// The median of several measurements, with the least and the greatest.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// The middle one, or between the two middle ones.
    pub median: f64,
    /// The least.
    pub least: f64,
    /// The greatest.
    pub greatest: f64,
}

/// Where the median of a figure lies in 95 of 100 cases, whatever its distribution: the ranks n/2 ∓ 0.98 √n of n measurements
/// (the binomial's normal approximation; Conover, Practical Nonparametric Statistics, § 3.2).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Confidence {
    /// Not less.
    pub least: f64,
    /// Not more.
    pub greatest: f64,
}

impl Confidence {
    /// `None` with fewer than six measurements, which cannot say that much.
    pub fn over(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<_> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (half, reach) = (values.len() as f64 / 2.0, 0.98 * (values.len() as f64).sqrt());
        let first = (half - reach).floor() as usize;
        (values.len() >= 6).then(|| Self { least: values[first], greatest: values[values.len() - 1 - first] })
    }
}

impl Spread {
    /// `None` without measurements.
    pub fn over(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<_> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (least, greatest) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median =
            if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 };
        Some(Self { median, least, greatest })
    }
}

impl Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = f.precision().unwrap_or(0);
        write!(f, "{:.digits$} ({:.digits$}–{:.digits$})", self.median, self.least, self.greatest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The median is the middle one, or lies between the two middle ones.
    #[test]
    fn spreads() {
        assert_eq!(Spread::over([]), None);
        assert_eq!(Spread::over([3.0, 1.0, 2.0]), Some(Spread { median: 2.0, least: 1.0, greatest: 3.0 }));
        let even = Spread::over([4.0, 1.0, 2.0, 3.0]).unwrap();
        assert_eq!(format!("{even:.1}"), "2.5 (1.0–4.0)");
    }

    /// The ranks between which the median lies: of a hundred the 41st to the 60th, of six all, of five none.
    #[test]
    fn knows_how_sure_it_is() {
        let upto = |count: u32| Confidence::over((1..=count).map(f64::from));
        assert_eq!(upto(100), Some(Confidence { least: 41.0, greatest: 60.0 }));
        assert_eq!(upto(6), Some(Confidence { least: 1.0, greatest: 6.0 }));
        assert_eq!(upto(5), None);
    }
}
