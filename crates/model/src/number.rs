//! Numbers with their units: [`Connections`], [`Share`] (fixed-point connections), [`Ratio`], [`PerSecond`].

use core::fmt;
use core::iter::Sum;
use core::ops::{Add, AddAssign, Sub};

/// A number of WebSocket connections.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Connections(pub u32);

impl Connections {
    /// None at all.
    pub const ZERO: Self = Self(0);
    /// More than any server holds.
    pub const MAX: Self = Self(u32::MAX);

    /// The plain number.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }

    /// `self − other`, at least 0.
    #[must_use]
    pub const fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl Add for Connections {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl AddAssign for Connections {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Sub for Connections {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        debug_assert!(self >= other, "{self} - {other} connections");
        self.saturating_sub(other)
    }
}

impl Sum for Connections {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        iter.fold(Self::ZERO, Add::add)
    }
}

impl fmt::Display for Connections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Connections in fixed point with 16 fractional bits: targets stay exact, so that a fleet of 100 servers and
/// 10 connections still has targets in the right proportion. Rounded only on the wire and for display.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Share(pub u64);

impl Share {
    /// Nothing.
    pub const ZERO: Self = Self(0);
    /// Fractional bits.
    pub const BITS: u32 = 16;

    /// A whole number of connections.
    #[must_use]
    pub const fn from_connections(connections: Connections) -> Self {
        Self((connections.0 as u64) << Self::BITS)
    }

    /// Rounded to the nearest whole connection.
    #[must_use]
    pub const fn round(self) -> Connections {
        let rounded = (self.0 + (1 << (Self::BITS - 1))) >> Self::BITS;
        if rounded > u32::MAX as u64 { Connections::MAX } else { Connections(rounded as u32) }
    }

    /// Rounded up to a whole connection.
    #[must_use]
    pub const fn ceil(self) -> Connections {
        let rounded = (self.0 + (1 << Self::BITS) - 1) >> Self::BITS;
        if rounded > u32::MAX as u64 { Connections::MAX } else { Connections(rounded as u32) }
    }

    /// In connections, as a float for ratios and display.
    #[must_use]
    pub fn as_f64(self) -> f64 {
        self.0 as f64 / f64::from(1u32 << Self::BITS)
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1}", self.as_f64())
    }
}

/// A finite ratio ≥ 0, for example a utilisation: 1 is full.
#[derive(Debug, Clone, Copy, Default, PartialEq, PartialOrd)]
pub struct Ratio(f64);

impl Ratio {
    /// Empty.
    pub const ZERO: Self = Self(0.0);
    /// Full.
    pub const ONE: Self = Self(1.0);

    /// Takes a finite number ≥ 0; NaN and negative numbers become 0, infinity the largest float.
    #[must_use]
    pub fn new(value: f64) -> Self {
        Self(if value > 0.0 { value.min(f64::MAX) } else { 0.0 })
    }

    /// The plain number.
    #[must_use]
    pub const fn get(self) -> f64 {
        self.0
    }
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2}", self.0)
    }
}

/// Events per second, finite and ≥ 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, PartialOrd)]
pub struct PerSecond(f64);

impl PerSecond {
    /// Never.
    pub const ZERO: Self = Self(0.0);

    /// Takes a finite number ≥ 0; NaN and negative numbers become 0, infinity the largest float.
    #[must_use]
    pub fn new(value: f64) -> Self {
        Self(if value > 0.0 { value.min(f64::MAX) } else { 0.0 })
    }

    /// The plain number.
    #[must_use]
    pub const fn get(self) -> f64 {
        self.0
    }

    /// Whether it is 0.
    #[must_use]
    pub fn is_zero(self) -> bool {
        self.0 == 0.0
    }

    /// The smaller of two rates.
    #[must_use]
    pub fn min(self, other: Self) -> Self {
        Self(self.0.min(other.0))
    }
}

impl fmt::Display for PerSecond {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1}/s", self.0)
    }
}
