//! Weighted sums of networks, in f64 on the host, rounded once.

use std::collections::BTreeMap;

use crate::checkpoint::{HostData, HostTensor};

/// A network's tensors by torchvision's names.
pub type Tensors = BTreeMap<String, HostTensor>;

/// Σ coefficient·tensor of every tensor of the first network; the others hold the same ones.
///
/// A sum of numbers that are all the same is that number to the bit if the coefficients add up to
/// one: f64 has 29 bits to spare. A coefficient of 0 leaves its network out. Batch counters are
/// rounded to whole numbers.
///
/// # Panics
/// If there is no network, or another lacks a tensor of the first or has it in another size.
pub fn weighted_sum(parts: &[(f64, &Tensors)]) -> Tensors {
    let sum = |name: &String, first: &HostTensor| {
        let tensors: Vec<(f64, &HostTensor)> = parts
            .iter()
            .filter(|(coefficient, _)| *coefficient != 0.0)
            .map(|(coefficient, tensors)| (*coefficient, &tensors[name]))
            .collect();
        if let [(1.0, only)] = tensors[..] {
            return only.clone();
        }
        let data = match &first.data {
            HostData::F32(data) => {
                let of = |at: usize| {
                    let term = |(coefficient, tensor): &(f64, &HostTensor)| {
                        coefficient * f64::from(tensor.as_f32().expect("all hold numbers")[at])
                    };
                    // Starting at the first term keeps a sum of negative zeros negative.
                    tensors.iter().map(term).reduce(|a, b| a + b).unwrap_or(0.0) as f32
                };
                HostData::F32((0..data.len()).map(of).collect())
            }
            HostData::I64(data) => {
                let of = |at: usize| {
                    let term = |(coefficient, tensor): &(f64, &HostTensor)| match &tensor.data {
                        HostData::I64(data) => coefficient * data[at] as f64,
                        HostData::F32(_) => unreachable!("all hold counters"),
                    };
                    tensors.iter().map(term).sum::<f64>().round() as i64
                };
                HostData::I64((0..data.len()).map(of).collect())
            }
        };
        HostTensor { shape: first.shape.clone(), data }
    };
    parts[0].1.iter().map(|(name, first)| (name.clone(), sum(name, first))).collect()
}

/// Whether a tensor belongs to the backbone.
pub fn is_backbone(name: &str) -> bool {
    !name.starts_with("fc.")
}

/// Whether two networks' backbones are equal to the bit, statistics included.
pub fn same_backbone(a: &Tensors, b: &Tensors) -> bool {
    a.iter().filter(|(name, _)| is_backbone(name)).all(|(name, tensor)| {
        b.get(name).is_some_and(|other| match (&tensor.data, &other.data) {
            (HostData::F32(x), HostData::F32(y)) => {
                x.iter().map(|x| x.to_bits()).eq(y.iter().map(|y| y.to_bits()))
            }
            (x, y) => x == y,
        })
    })
}

/// How far apart two networks' convolutions are: ‖a − b‖ / √(‖a‖² + ‖b‖²), 0 for the same ones and
/// about 1 for ones that have nothing to do with each other.
pub fn distance(a: &Tensors, b: &Tensors) -> f64 {
    let (mut apart, mut size) = (0.0, 0.0);
    let weights = |tensor: &HostTensor| tensor.shape.len() == 4;
    for (name, tensor) in a.iter().filter(|(_, tensor)| weights(tensor)) {
        if let (Some(x), Some(y)) = (tensor.as_f32(), b.get(name).and_then(HostTensor::as_f32)) {
            for (x, y) in x.iter().zip(y).map(|(&x, &y)| (f64::from(x), f64::from(y))) {
                apart += (x - y) * (x - y);
                size += x * x + y * y;
            }
        }
    }
    if size == 0.0 { 0.0 } else { (apart / size).sqrt() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(values: &[f32], count: i64) -> Tensors {
        BTreeMap::from([
            ("conv1.weight".to_owned(), HostTensor::f32([values.len(), 1, 1, 1], values.to_vec())),
            ("bn1.num_batches_tracked".to_owned(), HostTensor::scalar(count)),
        ])
    }

    /// Numbers of every size a float can have, zeros of both signs and subnormals included.
    fn spread() -> Vec<f32> {
        let mut bits = 1u32;
        let mut values = vec![0.0, -0.0, f32::MIN_POSITIVE, f32::MIN_POSITIVE / 8.0, f32::MAX];
        while values.len() < 4096 {
            bits = bits.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            values.extend(Some(f32::from_bits(bits)).filter(|value| value.is_finite()));
        }
        values
    }

    #[test]
    fn a_network_averaged_with_itself_is_itself() {
        let a = network(&spread(), 41);
        for alpha in [0.0, 0.1, 0.3, 0.5, 0.7, 1.0] {
            let sum = weighted_sum(&[(1.0 - alpha, &a), (alpha, &a)]);
            assert!(same_backbone(&sum, &a), "{alpha}");
        }
        for count in [1, 3, 5, 7] {
            let sum = weighted_sum(&vec![(1.0 / count as f64, &a); count]);
            assert!(same_backbone(&sum, &a), "{count}");
        }
    }

    #[test]
    fn sums_are_weighted() {
        let (a, b) = (network(&[1.0, -2.0], 10), network(&[3.0, 6.0], 13));
        assert_eq!(weighted_sum(&[(0.75, &a), (0.25, &b)]), network(&[1.5, 0.0], 11));
        assert_eq!(weighted_sum(&[(0.0, &a), (1.0, &b)]), b);
    }

    #[test]
    fn bits_tell_zeros_apart() {
        assert!(!same_backbone(&network(&[0.0], 1), &network(&[-0.0], 1)));
        assert!(!same_backbone(&network(&[0.0], 1), &network(&[0.0], 2)));
    }

    #[test]
    fn the_backbone_is_all_but_the_classifier() {
        let with_head = |value: f32| {
            let mut tensors = network(&[1.0], 1);
            tensors.insert("fc.weight".into(), HostTensor::f32([1, 1], vec![value]));
            tensors
        };
        assert!(same_backbone(&with_head(1.0), &with_head(2.0)));
        assert_eq!(distance(&with_head(1.0), &with_head(2.0)), 0.0, "of convolutions");
        assert_eq!(distance(&network(&[0.0], 1), &network(&[0.0], 1)), 0.0, "not 0 / 0");
    }

    #[test]
    fn distances_tell_relatives_from_strangers() {
        let values = spread().into_iter().map(|value| (value.to_bits() % 97) as f32 - 48.0);
        let a: Vec<f32> = values.collect();
        let near: Vec<f32> = a.iter().map(|value| value * 1.02).collect();
        let far: Vec<f32> = (0..a.len()).map(|at| a[at * 1231 % a.len()]).collect();
        let a = network(&a, 0);
        assert_eq!(distance(&a, &a), 0.0);
        assert!(distance(&a, &network(&near, 0)) < 0.02);
        let far = distance(&a, &network(&far, 0));
        assert!((0.9..1.1).contains(&far), "{far}");
    }
}
