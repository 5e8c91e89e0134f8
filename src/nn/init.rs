//! Random initial values, as torchvision's ResNets have them.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Initial values of the parameter `name` of torchvision's shape `shape`.
///
/// Convolutions: normal with variance 2 / fan-out (He et al. 2015, `kaiming_normal_`); batch norm:
/// weight 1, bias 0; linear layers: uniform within ±1/√fan-in, weight and bias (PyTorch's default).
/// Depends on `seed` and `name` only.
pub fn initial(name: &str, shape: &[usize], fan_in_of_head: usize, seed: u64) -> Vec<f32> {
    let count = shape.iter().product();
    let mut rng = generator(name, seed);
    match shape {
        [out, _, r, s] => {
            let deviation = (2.0 / (out * r * s) as f64).sqrt();
            (0..count).map(|_| (deviation * normal(&mut rng)) as f32).collect()
        }
        _ if name.starts_with("fc.") => {
            let bound = 1.0 / (fan_in_of_head as f64).sqrt();
            (0..count).map(|_| ((2.0 * rng.random::<f64>() - 1.0) * bound) as f32).collect()
        }
        _ if name.ends_with("weight") => vec![1.0; count],
        _ => vec![0.0; count],
    }
}

/// A generator of its own for every name, so that values do not depend on the order of asking.
fn generator(name: &str, seed: u64) -> ChaCha8Rng {
    // FNV-1a.
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(hash);
    rng
}

/// A standard normal number (Box and Muller).
fn normal(rng: &mut ChaCha8Rng) -> f64 {
    let (u, v): (f64, f64) = (rng.random(), rng.random());
    (-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn convolutions_have_the_variance_of_their_fan_out() {
        let values = initial("conv1.weight", &[64, 3, 7, 7], 512, 0);
        let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / values.len() as f64;
        let square = values.iter().map(|&v| f64::from(v * v)).sum::<f64>() / values.len() as f64;
        let expected = 2.0 / (64.0 * 49.0);
        assert!(mean.abs() < 4.0 * (expected / values.len() as f64).sqrt(), "{mean}");
        assert!((square / expected - 1.0).abs() < 0.06, "{square} instead of {expected}");
    }

    #[test]
    fn values_depend_on_seed_and_name() {
        let shape = [8, 4, 3, 3];
        let first = initial("a.conv1.weight", &shape, 512, 0);
        assert_eq!(first, initial("a.conv1.weight", &shape, 512, 0));
        assert_ne!(first, initial("a.conv1.weight", &shape, 512, 1));
        assert_ne!(first, initial("b.conv1.weight", &shape, 512, 0));
    }

    #[test]
    fn norms_start_as_the_identity_and_the_head_within_its_bound() {
        assert_eq!(initial("bn1.weight", &[2], 512, 0), [1.0, 1.0]);
        assert_eq!(initial("bn1.bias", &[2], 512, 0), [0.0, 0.0]);
        let bound = 1.0 / 512f32.sqrt();
        for (name, shape) in [("fc.weight", vec![10, 512]), ("fc.bias", vec![10])] {
            let values = initial(name, &shape, 512, 0);
            assert!(values.iter().all(|v| v.abs() <= bound && *v != 0.0), "{name}");
        }
    }
}
