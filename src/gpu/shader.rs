//! From a shader file to the WGSL that is compiled: constants and unrolled loops.
//!
//! A shader file is WGSL with four additions, because software adapters and some drivers do not
//! unroll loops and lane numbers of subgroup broadcasts must be literals:
//!
//! - `override NAME: u32 = 4u;` declares a constant with its default; the kernel that is asked for
//!   may give another value. It becomes a `const`, so it may size arrays and loops.
//! - `//#for i in 0..NAME` … `//#end` repeats the lines between; `//#if NAME > 1` … `//#else` …
//!   `//#end` keeps or drops them. `${i * 4 + 1}` is replaced by the number it evaluates to.
//! - `//#const NAME = EXPRESSION` declares a constant that follows from others.
//! - `//#include NAME` stands for what `shaders/NAME.wgsl` holds, a part that several shaders share.

use std::collections::HashMap;

/// A file of `shaders/`: its stem and its text. Made by [`crate::shader!`].
#[derive(Debug)]
pub struct Shader {
    /// The file's stem.
    pub name: &'static str,
    /// The file's text.
    pub source: &'static str,
}

/// Includes `shaders/NAME.wgsl` as a [`Shader`].
#[macro_export]
macro_rules! shader {
    ($name:literal) => {
        $crate::gpu::Shader {
            name: $name,
            source: include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/", $name, ".wgsl")),
        }
    };
}

/// What every shader begins with.
static COMMON: Shader = shader!("common");

/// What shaders can include.
static PARTS: &[&Shader] = &[
    &shader!("batch_norm_normalise"),
    &shader!("batch_norm_sums"),
    &shader!("batch_norm_through"),
    &shader!("conv2d_affine"),
    &shader!("conv2d_epilogue"),
    &shader!("conv2d_forward_memory"),
    &shader!("conv2d_operands"),
    &shader!("conv2d_padding"),
    &shader!("conv2d_params"),
    &shader!("conv2d_rows"),
    &shader!("conv2d_shares"),
    &shader!("conv2d_winograd_params"),
    &shader!("cooperative_epilogue"),
    &shader!("cooperative_multiply"),
    &shader!("cooperative_outputs"),
    &shader!("cooperative_pairs"),
    &shader!("cooperative_places"),
    &shader!("cooperative_sums"),
    &shader!("cooperative_tiles"),
    &shader!("max_pool2d_places"),
    &shader!("sum_of_partials"),
    &shader!("words"),
];

/// The constant of `common.wgsl` that makes every shader's `stored` f16.
const HALF: &str = "HALF";

/// Constants a [`Kernel`] can give to its shader at most.
const MAX_CONSTANTS: usize = 16;

/// A shader together with the values of its constants: what one pipeline is compiled from.
#[derive(Clone, Copy, Debug)]
pub struct Kernel {
    shader: &'static Shader,
    constants: [(&'static str, u32); MAX_CONSTANTS],
    count: usize,
}

impl Kernel {
    /// The shader with its default constants.
    pub const fn new(shader: &'static Shader) -> Self {
        Self { shader, constants: [("", 0); MAX_CONSTANTS], count: 0 }
    }

    /// The kernel with constant `name` set to `value`.
    ///
    /// # Panics
    /// If more than sixteen constants are set.
    pub const fn with(mut self, name: &'static str, value: u32) -> Self {
        self.constants[self.count] = (name, value);
        self.count += 1;
        self
    }

    /// The kernel for activations stored in f16 if `half`, else in f32.
    pub const fn half(self, half: bool) -> Self {
        if half { self.with(HALF, 1) } else { self }
    }

    /// Whether the kernel reads or writes f16.
    pub fn is_half(&self) -> bool {
        self.constants().contains(&(HALF, 1))
    }

    /// The same constants given to another shader.
    pub(super) const fn of(self, shader: &'static Shader) -> Self {
        Self { shader, ..self }
    }

    /// The constants given.
    pub fn constants(&self) -> &[(&'static str, u32)] {
        &self.constants[..self.count]
    }

    /// The shader's stem.
    pub fn name(&self) -> &'static str {
        self.shader.name
    }

    /// The stem followed by the constants given, as `verify` and `bench` print it.
    pub fn label(&self) -> String {
        let constants: Vec<_> = self.constants().iter().map(|(n, v)| format!("{n}={v}")).collect();
        match constants.is_empty() {
            true => self.name().to_owned(),
            false => format!("{}[{}]", self.name(), constants.join(" ")),
        }
    }

    /// The WGSL to compile: `common.wgsl` and the shader, expanded.
    ///
    /// # Errors
    /// A text naming the shader, line and mistake, if a directive is malformed.
    pub fn wgsl(&self) -> Result<String, String> {
        let given: HashMap<_, _> = self.constants().iter().copied().collect();
        let (mut scope, mut body) = (HashMap::new(), String::new());
        for Shader { name, source } in [&COMMON, self.shader] {
            expand(source, &mut scope, &given, &mut body)
                .map_err(|what| format!("shaders/{name}.wgsl: {what}"))?;
        }
        if let Some(name) = given.keys().find(|&&name| !scope.contains_key(name)) {
            return Err(format!("shaders/{}.wgsl: it has no constant `{name}`", self.name()));
        }
        // Directives must come first in a module.
        let is_directive =
            |line: &str| ["enable ", "diagnostic("].iter().any(|d| line.starts_with(d));
        let (directives, rest): (Vec<_>, Vec<_>) =
            body.split_inclusive('\n').partition(|line| is_directive(line));
        Ok(directives.into_iter().chain(rest).collect())
    }
}

impl PartialEq for Kernel {
    fn eq(&self, other: &Self) -> bool {
        // Asked for every dispatch, nearly always of constants with the very same names.
        let same = |((a, m), (b, n)): (&(&str, u32), &(&str, u32))| {
            m == n && (std::ptr::eq::<str>(*a, *b) || a == b)
        };
        std::ptr::eq(self.shader.source, other.shader.source)
            && self.count == other.count
            && self.constants().iter().zip(other.constants()).all(same)
    }
}

impl Eq for Kernel {}

impl std::hash::Hash for Kernel {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.shader.name.hash(state);
        self.constants().hash(state);
    }
}

/// Expands a file into `out`; its constants join those in `scope`.
fn expand<'a>(
    source: &'a str,
    scope: &mut HashMap<&'a str, i64>,
    given: &HashMap<&'static str, u32>,
    out: &mut String,
) -> Result<(), String> {
    let lines: Vec<&str> = source.lines().collect();
    let end = expand_block(&lines, 0, scope, given, true, out)?;
    match lines.get(end) {
        Some(line) => Err(format!("line {}: `{}` without a block", end + 1, line.trim())),
        None => Ok(()),
    }
}

/// Expands lines from `at` up to the `//#else` or `//#end` that closes the block; returns its line.
/// A block that is not `live` is walked without output.
fn expand_block<'a>(
    lines: &[&'a str],
    mut at: usize,
    scope: &mut HashMap<&'a str, i64>,
    given: &HashMap<&'static str, u32>,
    live: bool,
    out: &mut String,
) -> Result<usize, String> {
    while at < lines.len() {
        let located = |what: String| format!("line {}: {what}", at + 1);
        let line = lines[at];
        let close = |end: usize, word: &str| match lines.get(end).map(|line| line.trim()) {
            Some(found) if found == word => Ok(()),
            _ => Err(located(format!("this block is not closed by `{word}`"))),
        };
        match line.trim().strip_prefix("//#").map(str::trim) {
            Some("end" | "else") => return Ok(at),
            Some(directive) => {
                if let Some(rest) = directive.strip_prefix("for ") {
                    let (name, range) = rest
                        .split_once(" in ")
                        .and_then(|(name, range)| Some((name.trim(), range.split_once("..")?)))
                        .ok_or_else(|| located("expected `//#for i in A..B`".into()))?;
                    let bound = |text| if live { evaluate(text, scope) } else { Ok(0) };
                    let (from, to) =
                        (bound(range.0).map_err(located)?, bound(range.1).map_err(located)?);
                    let mut end = expand_block(lines, at + 1, scope, given, false, out)?;
                    for value in from..to {
                        scope.insert(name, value);
                        end = expand_block(lines, at + 1, scope, given, live, out)?;
                    }
                    scope.remove(name);
                    close(end, "//#end")?;
                    at = end;
                } else if let Some(condition) = directive.strip_prefix("if ") {
                    let holds = live && evaluate(condition, scope).map_err(located)? != 0;
                    let mut end = expand_block(lines, at + 1, scope, given, holds, out)?;
                    if lines.get(end).is_some_and(|line| line.trim() == "//#else") {
                        end = expand_block(lines, end + 1, scope, given, live && !holds, out)?;
                    }
                    close(end, "//#end")?;
                    at = end;
                } else if let Some(rest) = directive.strip_prefix("const ") {
                    let (name, value) = rest
                        .split_once('=')
                        .map(|(name, value)| (name.trim(), value))
                        .ok_or_else(|| located("expected `//#const NAME = VALUE`".into()))?;
                    if live {
                        let value = evaluate(value, scope).map_err(located)?;
                        scope.insert(name, value);
                        out.push_str(&format!("const {name}: u32 = {value}u;\n"));
                    }
                } else if let Some(part) = directive.strip_prefix("include ") {
                    let part = PARTS.iter().find(|shader| shader.name == part.trim());
                    let part = part.ok_or_else(|| located("there is no such part".into()))?;
                    if live {
                        expand(part.source, scope, given, out)
                            .map_err(|what| format!("shaders/{}.wgsl: {what}", part.name))?;
                    }
                } else {
                    return Err(located(format!("unknown directive `{directive}`")));
                }
            }
            None if !live => {}
            None => {
                if let Some((name, default)) = parse_constant(line) {
                    let value = given.get(name).map_or(default, |&value| i64::from(value));
                    scope.insert(name, value);
                    out.push_str(&format!("const {name}: u32 = {value}u;\n"));
                } else {
                    substitute(line, scope, out).map_err(located)?;
                    out.push('\n');
                }
            }
        }
        at += 1;
    }
    Ok(at)
}

/// Reads `override NAME: u32 = 4u;`.
fn parse_constant(line: &str) -> Option<(&str, i64)> {
    let (name, rest) = line.strip_prefix("override ")?.split_once(": u32 = ")?;
    let digits = rest.split_once(';')?.0.trim_end_matches('u');
    Some((name, digits.parse().ok()?))
}

fn substitute(line: &str, scope: &HashMap<&str, i64>, out: &mut String) -> Result<(), String> {
    let mut rest = line;
    while let Some(start) = rest.find("${") {
        let length = rest[start..].find('}').ok_or("`${` without `}`")?;
        out.push_str(&rest[..start]);
        out.push_str(&evaluate(&rest[start + 2..start + length], scope)?.to_string());
        rest = &rest[start + length + 1..];
    }
    out.push_str(rest);
    Ok(())
}

/// Evaluates an integer expression of numbers, names, `+ - * / %`, comparisons and parentheses.
fn evaluate(text: &str, scope: &HashMap<&str, i64>) -> Result<i64, String> {
    let mut parser = Parser { rest: text, scope };
    let value = parser.comparison()?;
    match parser.rest.trim() {
        "" => Ok(value),
        rest => Err(format!("`{rest}` is left over in `{text}`")),
    }
}

struct Parser<'a> {
    rest: &'a str,
    scope: &'a HashMap<&'a str, i64>,
}

impl Parser<'_> {
    fn take(&mut self, word: &str) -> bool {
        match self.rest.trim_start().strip_prefix(word) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn comparison(&mut self) -> Result<i64, String> {
        let left = self.sum()?;
        for (word, holds) in [
            ("==", (|a, b| a == b) as fn(i64, i64) -> bool),
            ("!=", |a, b| a != b),
            ("<=", |a, b| a <= b),
            (">=", |a, b| a >= b),
            ("<", |a, b| a < b),
            (">", |a, b| a > b),
        ] {
            if self.take(word) {
                return Ok(i64::from(holds(left, self.sum()?)));
            }
        }
        Ok(left)
    }

    fn sum(&mut self) -> Result<i64, String> {
        let mut value = self.product()?;
        loop {
            if self.take("+") {
                value += self.product()?;
            } else if self.take("-") {
                value -= self.product()?;
            } else {
                return Ok(value);
            }
        }
    }

    fn product(&mut self) -> Result<i64, String> {
        let mut value = self.atom()?;
        loop {
            if self.take("*") {
                value *= self.atom()?;
            } else if self.take("/") {
                value = value.checked_div(self.atom()?).ok_or("division by zero")?;
            } else if self.take("%") {
                value = value.checked_rem(self.atom()?).ok_or("division by zero")?;
            } else {
                return Ok(value);
            }
        }
    }

    fn atom(&mut self) -> Result<i64, String> {
        if self.take("(") {
            let value = self.comparison()?;
            return if self.take(")") { Ok(value) } else { Err("`(` without `)`".into()) };
        }
        let text = self.rest.trim_start();
        let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
        let (word, rest) = text.split_at(end);
        self.rest = rest;
        match word.parse() {
            Ok(number) => Ok(number),
            Err(_) => self.scope.get(word).copied().ok_or(format!("unknown name `{word}`")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(source: &str, given: &[(&'static str, u32)]) -> Result<String, String> {
        let mut out = String::new();
        let given = given.iter().copied().collect();
        expand(source, &mut HashMap::new(), &given, &mut out).map(|()| out)
    }

    #[test]
    fn loops_unroll_with_constants_and_expressions() {
        let source = "override N: u32 = 2u;\n//#for i in 0..N\n//#for j in i..2\na[${i * 2 + j}];\n//#end\n//#end\nb";
        assert_eq!(expanded(source, &[]).unwrap(), "const N: u32 = 2u;\na[0];\na[1];\na[3];\nb\n");
        assert_eq!(expanded(source, &[("N", 1)]).unwrap(), "const N: u32 = 1u;\na[0];\na[1];\nb\n");
    }

    #[test]
    fn constants_follow_from_others() {
        let source = "override N: u32 = 2u;\n//#if N > 2\n//#const M = N * 2\n//#else\n//#const M = 1\n//#end\n${M + 1}";
        assert_eq!(expanded(source, &[]).unwrap(), "const N: u32 = 2u;\nconst M: u32 = 1u;\n2\n");
        assert!(expanded(source, &[("N", 3)]).unwrap().ends_with("const M: u32 = 6u;\n7\n"));
    }

    #[test]
    fn branches_keep_one_side() {
        let source =
            "override N: u32 = 2u;\n//#if N >= (1 + 2)\nmany\n//#else\nfew ${N % 2}\n//#end";
        assert_eq!(expanded(source, &[]).unwrap(), "const N: u32 = 2u;\nfew 0\n");
        assert_eq!(expanded(source, &[("N", 3)]).unwrap(), "const N: u32 = 3u;\nmany\n");
    }

    #[test]
    fn mistakes_are_errors_that_name_the_line() {
        for (source, text) in [
            ("//#for i in 0..2\na", "line 1: this block is not closed"),
            ("a\n//#end", "line 2: `//#end` without a block"),
            ("${x}", "line 1: unknown name `x`"),
            ("//#while", "line 1: unknown directive"),
            ("//#const N", "line 1: expected `//#const NAME = VALUE`"),
            ("a\n//#include nothing", "line 2: there is no such part"),
            ("${1 / 0}", "line 1: division by zero"),
        ] {
            let error = expanded(source, &[]).unwrap_err();
            assert!(error.contains(text), "{source:?} gave {error:?}");
        }
        static EMPTY: Shader = Shader { name: "empty", source: "" };
        let error = Kernel::new(&EMPTY).with("M", 1).wgsl().unwrap_err();
        assert!(error.contains("shaders/empty.wgsl: it has no constant `M`"), "{error}");
    }

    #[test]
    fn what_is_stored_is_f32_unless_asked_otherwise() {
        static STORED: Shader = Shader { name: "stored", source: "var<private> x: stored;" };
        let single = Kernel::new(&STORED).half(false);
        assert_eq!(single, Kernel::new(&STORED));
        let text = single.wgsl().unwrap();
        assert!(!text.contains("enable f16;") && text.contains("alias stored = f32;"));
        let half = single.half(true).wgsl().unwrap();
        assert!(half.starts_with("enable f16;") && half.contains("alias stored = f16;"));
    }
}
