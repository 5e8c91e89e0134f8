//! Every naming of a ResNet's tensors, brought to torchvision's.

/// What wrappers put before the names: Lightning and many trainers, `DataParallel`, feature
/// extractors.
const PREFIXES: [&str; 3] = ["model.", "module.", "backbone."];

/// The torchvision name for a name found in a file; names of no known layout come back without
/// their wrapper's prefix.
pub(super) fn canonical(stored: &str) -> String {
    let mut name = stored;
    while let Some(inner) = PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix)) {
        name = inner;
    }
    hugging_face(name).unwrap_or_else(|| name.to_owned())
}

/// Reads the names of `transformers`' `ResNetForImageClassification` and of its bare `ResNetModel`.
fn hugging_face(name: &str) -> Option<String> {
    let path: Vec<_> = name.strip_prefix("resnet.").unwrap_or(name).split('.').collect();
    Some(match path[..] {
        ["embedder", "embedder", part, leaf] => match part {
            "convolution" => format!("conv1.{leaf}"),
            "normalization" => format!("bn1.{leaf}"),
            _ => return None,
        },
        ["encoder", "stages", stage, "layers", block, ref inside @ ..] => {
            let (stage, block) = (index(stage)? + 1, index(block)?);
            let (part, leaf) = match *inside {
                ["layer", layer, "convolution", leaf] => {
                    (format!("conv{}", index(layer)? + 1), leaf)
                }
                ["layer", layer, "normalization", leaf] => {
                    (format!("bn{}", index(layer)? + 1), leaf)
                }
                ["shortcut", "convolution", leaf] => ("downsample.0".into(), leaf),
                ["shortcut", "normalization", leaf] => ("downsample.1".into(), leaf),
                _ => return None,
            };
            format!("layer{stage}.{block}.{part}.{leaf}")
        }
        ["classifier", "1", leaf] => format!("fc.{leaf}"),
        _ => return None,
    })
}

/// A small number, so that adding one cannot overflow.
fn index(digits: &str) -> Option<u32> {
    digits.parse::<u16>().ok().map(u32::from)
}

/// Whether a torchvision name lies in a module that every ResNet has, so that a tensor there that
/// no ResNet has means another network.
pub(super) fn is_inside_network(name: &str) -> bool {
    let module = name.split('.').next().unwrap_or_default();
    matches!(module, "conv1" | "bn1" | "layer1" | "layer2" | "layer3" | "layer4" | "fc")
}

/// Whether a torchvision name is the bias of a convolution, which only folding batch norm creates.
pub(super) fn is_conv_bias(name: &str) -> bool {
    let Some(module) = name.strip_suffix(".bias") else { return false };
    let last = module.rsplit('.').next().unwrap_or_default();
    module.ends_with("downsample.0") || last.starts_with("conv")
}
