//! Every shader file: it belongs to an operation, and whatever kernel an operation makes of it is
//! valid and translates to the languages of all backends, with parameters as large as those sent.

mod common;

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use naga::back::{glsl, hlsl, msl, spv};
use naga::proc::BoundsCheckPolicies;
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use naga::{AddressSpace, Module, ShaderStage};
use wgrad::gpu::{Gpu, GpuOptions, Kernel, MatrixUnits};
use wgrad::nn::{Arch, BnPolicy, Mode, ResNet, Stage};
use wgrad::ops::case::Case;
use wgrad::ops::{CrossEntropy, OPS, cross_entropy};
use wgrad::optim::{Algorithm, Optimizer, Settings};
use wgrad::{Result, Shape, Tape, Tensor};

const ENTRY: &str = "main";

/// Kernels with the bytes of the parameters sent to them.
type Kernels = HashMap<Kernel, u64>;

/// Every adapter in single and, where it can, in mixed precision; with whatever matrix units kernels
/// are written for.
fn gpus() -> Vec<Gpu> {
    let pretended = |side, lanes, wide_loads| Some(MatrixUnits { side, lanes, wide_loads });
    let nvidia = [pretended(16, 32, true), None];
    let apple = [pretended(8, 32, false); 2];
    let lavapipe = [pretended(8, 8, true), None];
    let mut gpus = Vec::new();
    for pretended_matrix_units in [[None; 2], nvidia, apple, lavapipe] {
        let single = GpuOptions { pretended_matrix_units, ..Default::default() };
        let mixed = common::every_gpu(GpuOptions { mixed: true, ..single });
        gpus.extend(mixed.into_iter().filter(Gpu::mixed));
        gpus.extend(common::every_gpu(single));
    }
    gpus
}

/// Every kernel that some case uses with some choice of kernels. Nothing is run.
fn kernels_of_cases(gpu: &Gpu) -> Kernels {
    let mut kernels = Kernels::new();
    for op in OPS {
        for case in op.cases().iter().filter(|case| case.supported(gpu)) {
            kernels.extend(plan(gpu, case));
            for &pass in case.passes {
                for name in gpu.offered_kernels(pass) {
                    gpu.force_kernel(pass, Some(name));
                    kernels.extend(plan(gpu, case));
                    gpu.force_kernel(pass, None);
                }
            }
        }
    }
    kernels
}

fn plan(gpu: &Gpu, case: &Case) -> Vec<(Kernel, u64)> {
    let plan = case.plan(gpu).unwrap_or_else(|error| panic!("{}: {error}", case.name));
    plan.kernels().collect()
}

/// A module as naga understands it.
struct Parsed {
    module: Module,
    info: ModuleInfo,
    subgroups: bool,
    half: bool,
    matrices: bool,
    /// Whether numbers are read and written as words of 64 bits.
    words: bool,
}

impl Parsed {
    fn new(wgsl: &str) -> std::result::Result<Self, String> {
        let words = wgsl.contains("alias packed = vec4<u64>;");
        // Nothing may use f16 without saying so.
        let half = wgsl.contains("\nenable f16;\n") || wgsl.starts_with("enable f16;\n");
        let matrices = wgsl.contains("enable wgpu_cooperative_matrix;\n");
        let mut plain = Capabilities::empty();
        plain.set(Capabilities::SHADER_FLOAT16, half);
        // As wgpu grants it to every adapter.
        plain.insert(Capabilities::SHADER_FLOAT16_IN_FLOAT32);
        plain.set(Capabilities::COOPERATIVE_MATRIX, matrices);
        plain.set(Capabilities::SHADER_INT64, words);
        let module =
            naga::front::wgsl::parse_str(wgsl).map_err(|error| error.emit_to_string(wgsl))?;
        let validate = |capabilities| {
            let info = Validator::new(ValidationFlags::all(), capabilities).validate(&module);
            info.map_err(|error| error.emit_to_string(wgsl))
        };
        let (info, subgroups) = match validate(plain) {
            Ok(info) => (info, false),
            Err(_) => (validate(plain | Capabilities::SUBGROUP)?, true),
        };
        Ok(Self { module, info, subgroups, half, matrices, words })
    }

    /// Bytes of the uniform at binding 0, in whole blocks of 16.
    fn parameter_bytes(&self) -> u64 {
        let uniforms = self.module.global_variables.iter();
        let mut uniforms = uniforms.filter(|(_, global)| global.space == AddressSpace::Uniform);
        let Some((_, uniform)) = uniforms.next() else { return 0 };
        assert!(uniforms.next().is_none(), "a kernel has one uniform");
        assert_eq!(uniform.binding.map(|at| (at.group, at.binding)), Some((0, 0)));
        let size = self.module.types[uniform.ty].inner.size(self.module.to_ctx());
        u64::from(size).next_multiple_of(16)
    }

    fn to_spirv(&self) -> std::result::Result<usize, String> {
        let options = spv::Options::default();
        let pipeline =
            spv::PipelineOptions { shader_stage: ShaderStage::Compute, entry_point: ENTRY.into() };
        let words = spv::write_vec(&self.module, &self.info, &options, Some(&pipeline));
        words.map(|words| words.len()).map_err(|error| error.to_string())
    }

    /// For macOS 10.15 and later; matrices and long words need macOS 11.
    fn to_msl(&self) -> std::result::Result<usize, String> {
        let lang_version = if self.matrices || self.words { (2, 3) } else { (2, 2) };
        let options = msl::Options { lang_version, ..Default::default() };
        let text = msl::write_string(&self.module, &self.info, &options, &Default::default());
        text.map(|(text, _)| text.len()).map_err(|error| error.to_string())
    }

    /// For the older compiler where it will do; wave operations and long words need a newer, f16 a still newer.
    fn to_hlsl(&self) -> std::result::Result<usize, String> {
        let shader_model = match (self.half, self.subgroups || self.words) {
            (true, _) => hlsl::ShaderModel::V6_2,
            (false, true) => hlsl::ShaderModel::V6_0,
            (false, false) => hlsl::ShaderModel::V5_1,
        };
        let options = hlsl::Options { shader_model, ..Default::default() };
        let mut text = String::new();
        hlsl::Writer::new(&mut text, &options, &Default::default())
            .write(&self.module, &self.info, None)
            .map_err(|error| error.to_string())?;
        Ok(text.len())
    }

    fn to_glsl_es(&self) -> std::result::Result<usize, String> {
        let options = glsl::Options { version: glsl::Version::new_gles(310), ..Default::default() };
        let pipeline = glsl::PipelineOptions {
            shader_stage: ShaderStage::Compute,
            entry_point: ENTRY.into(),
            multiview: None,
        };
        let mut text = String::new();
        glsl::Writer::new(
            &mut text,
            &self.module,
            &self.info,
            &options,
            &pipeline,
            BoundsCheckPolicies::default(),
        )
        .and_then(|mut writer| writer.write())
        .map_err(|error| error.to_string())?;
        Ok(text.len())
    }
}

#[test]
fn every_shader_file_belongs_to_an_operation() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("shaders");
    let files: BTreeSet<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let parts = [
        "common",
        "batch_norm_normalise",
        "batch_norm_sums",
        "batch_norm_through",
        "conv2d_affine",
        "conv2d_epilogue",
        "conv2d_forward_memory",
        "conv2d_operands",
        "conv2d_padding",
        "conv2d_params",
        "conv2d_rows",
        "conv2d_shares",
        "conv2d_winograd_params",
        "cooperative_epilogue",
        "cooperative_multiply",
        "cooperative_outputs",
        "cooperative_pairs",
        "cooperative_places",
        "cooperative_sums",
        "cooperative_tiles",
        "max_pool2d_places",
        "sum_of_partials",
        "words",
    ];
    let mut claimed: BTreeSet<_> = parts.iter().map(|part| format!("{part}.wgsl")).collect();
    claimed.extend(wgrad::bench::SHADERS.iter().map(|shader| format!("{}.wgsl", shader.name)));
    for op in OPS {
        for shader in op.shaders {
            let rest = shader.name.strip_prefix(op.name);
            assert!(
                rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('_')),
                "{} does not carry the name of its operation, {}",
                shader.name,
                op.name
            );
            let new = claimed.insert(format!("{}.wgsl", shader.name));
            assert!(new, "{} belongs to two operations", shader.name);
        }
    }
    assert_eq!(files, claimed, "the files, and those the operations name");
}

#[test]
fn every_kernel_translates_for_every_backend() {
    let mut kernels: Kernels = HashMap::new();
    for gpu in gpus() {
        kernels.extend(kernels_of_cases(&gpu));
        kernels.extend(kernels_of_training(&gpu));
    }
    for shader in OPS.iter().flat_map(|op| op.shaders) {
        let used = kernels.keys().any(|kernel| kernel.name() == shader.name);
        assert!(used, "no case uses {}", shader.name);
    }
    for half in [false, true] {
        let of_ceilings = wgrad::bench::SHADERS.iter().map(|shader| Kernel::new(shader).half(half));
        // Their parameters fit a block.
        kernels.extend(of_ceilings.map(|kernel| (kernel, 16)));
    }
    let mut with_subgroups = BTreeSet::new();
    for (kernel, sent) in &kernels {
        let label = kernel.label();
        let wgsl = kernel.wgsl().unwrap();
        let parsed = Parsed::new(&wgsl).unwrap_or_else(|error| panic!("{label}: {error}"));
        assert_eq!(parsed.parameter_bytes(), *sent, "{label}: bytes of its parameters");
        let splits = kernel.constants().contains(&("PARTS", 2));
        assert_eq!(parsed.half, kernel.is_half() || splits, "{label}");
        let mut languages = vec![("SPIR-V", parsed.to_spirv())];
        // Metal's matrices load from single numbers; the wide kernels are for others.
        if !parsed.matrices || kernel.constants().contains(&("WIDE", 0)) {
            languages.push(("MSL", parsed.to_msl()));
        }
        // The other two have no matrices, and OpenGL ES 3.1 neither subgroups nor f16 nor long words; wgpu
        // never offers them there, so nothing asks.
        if !parsed.matrices {
            languages.push(("HLSL", parsed.to_hlsl()));
        }
        if parsed.subgroups {
            with_subgroups.insert(kernel.name());
        }
        if !(parsed.subgroups || parsed.half || parsed.matrices || parsed.words) {
            languages.push(("GLSL ES", parsed.to_glsl_es()));
        }
        for (language, written) in languages {
            let length = written.unwrap_or_else(|error| panic!("{label} to {language}: {error}"));
            assert!(length > 100, "{label} to {language}: {length}");
        }
    }
    println!("{} kernels of {} operations", kernels.len(), OPS.len());
    let lanes: BTreeSet<_> = OPS
        .iter()
        .flat_map(|op| op.shaders)
        .map(|shader| shader.name)
        .filter(|name| name.ends_with("_lanes"))
        .collect();
    with_subgroups.retain(|name| !name.ends_with("_cooperative"));
    assert!(with_subgroups.is_subset(&lanes), "only these may use subgroups: {with_subgroups:?}");
    for name in lanes {
        let without = |kernel: &Kernel| {
            kernel.name() == name && !Parsed::new(&kernel.wgsl().unwrap()).unwrap().subgroups
        };
        assert!(kernels.keys().any(without), "{name} leaves adapters without subgroups nothing");
    }
}

/// What a network uses is what the cases check: same files, same constants.
#[test]
fn training_uses_only_kernels_that_cases_cover() {
    for gpu in gpus() {
        let covered = kernels_of_cases(&gpu);
        let used = kernels_of_training(&gpu);
        assert!(used.len() > 20);
        for kernel in used.keys() {
            assert!(covered.contains_key(kernel), "no case uses {}", kernel.label());
        }
    }
}

/// Every kernel that training steps use with some choice of kernels. Nothing is run.
fn kernels_of_training(gpu: &Gpu) -> Kernels {
    let mut kernels = Kernels::new();
    for arch in ["resnet18-w8", "resnet50-w8"] {
        for (from, bn, algorithm) in [
            (Stage::Stem, BnPolicy::Train, Algorithm::Sgd { momentum: 0.9, nesterov: false }),
            (Stage::Stem, BnPolicy::Frozen, Algorithm::AdamW),
            (Stage::Layer3, BnPolicy::Train, Algorithm::Adam),
            (Stage::Head, BnPolicy::Frozen, Algorithm::Adam),
        ] {
            let arch = Arch::from_name(arch).unwrap();
            kernels.extend(kernels_of_step(gpu, arch, Mode::train_from(from, bn), algorithm));
        }
    }
    kernels
}

fn kernels_of_step(gpu: &Gpu, arch: Arch, mode: Mode, algorithm: Algorithm) -> Kernels {
    let settings = Settings {
        algorithm,
        weight_decay: 1e-4,
        norm_weight_decay: 0.0,
        clip_grad_norm: Some(1.0),
        l2_sp: 0.01,
    };
    let mut net = ResNet::new(gpu, arch, 10, 0).unwrap();
    net.parameters_mut().require_gradients(gpu);
    let from = mode.train_from.expect("something is trained");
    let optimizer = Optimizer::new(gpu, net.parameters(), settings, from, |_| 1.0).unwrap();
    let images = Tensor::empty_as(gpu, Shape::new(2, 64, 64, 3), net.dtype());
    let labels = wgrad::ops::labels(gpu, &[0, 1]).unwrap();
    let record = || -> Result<()> {
        let tape = Tape::new(gpu);
        let logits = net.forward(&tape, &tape.constant(images.clone()), mode)?;
        let options = CrossEntropy { label_smoothing: 0.1, divisor: 2.0 };
        let output = cross_entropy(&tape, &logits, &labels, options)?;
        tape.backward(&output.loss, optimizer.seed())?;
        optimizer.step(gpu)
    };
    let plan = || gpu.plan(record).unwrap().kernels().collect::<Vec<_>>();
    let mut kernels: Kernels = plan().into_iter().collect();
    let passes = OPS.iter().flat_map(|op| (op.cases)()).flat_map(|case| case.passes);
    for &pass in passes.collect::<BTreeSet<_>>() {
        for name in gpu.offered_kernels(pass) {
            gpu.force_kernel(pass, Some(name));
            kernels.extend(plan());
            gpu.force_kernel(pass, None);
        }
    }
    kernels
}

#[test]
fn mistakes_are_seen() {
    let kernel = "struct P { a: u32, b: vec3<f32>, c: u32 }
        @group(0) @binding(0) var<uniform> p: P;
        @group(0) @binding(1) var<storage, read_write> y: array<f32>;
        @compute @workgroup_size(8) fn main(@builtin(local_invocation_index) i: u32) {
            y[i] = p.b.x;
        }";
    let parsed = Parsed::new(kernel).unwrap();
    assert_eq!(parsed.parameter_bytes(), 32);
    assert!(!parsed.subgroups && parsed.to_glsl_es().is_ok());
    let shared = Parsed::new(&kernel.replace("p.b.x", "subgroupBroadcast(p.b.x, 0u)")).unwrap();
    assert!(shared.subgroups);
    for (from, to) in [("p.b.x", "p.b"), ("y[i]", "z[i]"), ("p.b.x", "f32(f16(p.b.x))")] {
        assert!(Parsed::new(&kernel.replace(from, to)).is_err(), "{from} → {to}");
    }
}
