//! Draws from the distributions that load and noise follow.

use std::time::Duration;

use evenkeel_model::Rng;

/// Standard normal (Box and Muller 1958).
pub(crate) fn normal(rng: &mut Rng) -> f64 {
    let radius = (-2.0 * (1.0 - rng.unit()).ln()).sqrt();
    radius * (std::f64::consts::TAU * rng.unit()).cos()
}

/// Time to the next event of a Poisson process.
pub(crate) fn wait(per_s: f64, rng: &mut Rng) -> Duration {
    Duration::from_secs_f64((-(1.0 - rng.unit()).ln() / per_s).min(1e9))
}

/// Events of a Poisson process whose mean is `mean`; above 50 by the normal approximation.
pub(crate) fn poisson(mean: f64, rng: &mut Rng) -> u32 {
    if mean > 50.0 {
        return (mean + mean.sqrt() * normal(rng)).round().max(0.0) as u32;
    }
    let (limit, mut product, mut count) = ((-mean).exp(), rng.unit(), 0);
    while product > limit {
        product *= rng.unit();
        count += 1;
    }
    count
}

/// An index in proportion to its weight; `None` if all are 0.
pub(crate) fn weighted(weights: impl Iterator<Item = u32> + Clone, rng: &mut Rng) -> Option<usize> {
    let total: u64 = weights.clone().map(u64::from).sum();
    let mut ball = rng.below(total);
    weights.enumerate().find_map(|(index, weight)| {
        let hit = ball < u64::from(weight);
        ball = ball.saturating_sub(u64::from(weight));
        hit.then_some(index)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_have_the_means_they_should() {
        let mut rng = Rng::new(5);
        let mean = |draw: &mut dyn FnMut() -> f64| (0..20_000).map(|_| draw()).sum::<f64>() / 20_000.0;
        assert!(mean(&mut || normal(&mut rng)).abs() < 0.03);
        assert!((mean(&mut || wait(4.0, &mut rng).as_secs_f64()) - 0.25).abs() < 0.01);
        assert!((mean(&mut || f64::from(poisson(3.0, &mut rng))) - 3.0).abs() < 0.06);
        assert!((mean(&mut || f64::from(poisson(200.0, &mut rng))) - 200.0).abs() < 0.5);
        let thirds = mean(&mut || weighted([1, 0, 3].into_iter(), &mut rng).unwrap() as f64);
        assert!((thirds - 1.5).abs() < 0.03, "{thirds}");
        assert_eq!(weighted([0, 0].into_iter(), &mut rng), None);
    }
}
