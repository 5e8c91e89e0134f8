//! Which of several kernels an operation uses for a pass: the one asked for, else the one found to be
//! the fastest for these sizes, else the first that the operation's table offers.

use std::cell::RefCell;
use std::collections::HashMap;

/// The sizes of a pass that a choice may depend on; what they mean is the operation's business.
pub type Sizes = [u32; 12];

/// A pass at sizes at which a kernel had to be chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The pass.
    pub pass: &'static str,
    /// Its sizes.
    pub sizes: Sizes,
    /// The kernels it can be done by, the table's choice first.
    pub kernels: Vec<&'static str>,
}

#[derive(Default)]
pub(super) struct Choices {
    /// Kernels asked for, by pass.
    forced: RefCell<HashMap<&'static str, &'static str>>,
    /// Kernels measured to be the fastest, by sizes: the pass and the kernel.
    tuned: RefCell<HashMap<Sizes, Vec<(String, String)>>>,
    /// Kernels that passes have offered so far.
    offered: RefCell<HashMap<&'static str, Vec<&'static str>>>,
    /// Kernel that each pass used last.
    chosen: RefCell<HashMap<&'static str, &'static str>>,
    /// Choices made since they were last taken.
    problems: RefCell<Vec<Problem>>,
    /// Whether to keep those.
    watching: std::cell::Cell<bool>,
}

impl Choices {
    pub fn force(&self, pass: &'static str, kernel: Option<&'static str>) {
        match kernel {
            Some(kernel) => self.forced.borrow_mut().insert(pass, kernel),
            None => self.forced.borrow_mut().remove(pass),
        };
    }

    pub fn tune(&self, pass: &str, sizes: Sizes, kernel: &str) {
        let mut tuned = self.tuned.borrow_mut();
        let here = tuned.entry(sizes).or_default();
        here.retain(|(other, _)| other != pass);
        here.push((pass.to_owned(), kernel.to_owned()));
    }

    /// The kernels measured to be the fastest, each with its pass and the sizes; in order.
    pub fn tuned(&self) -> Vec<(String, Sizes, String)> {
        let tuned = self.tuned.borrow();
        let at_sizes = tuned.iter().flat_map(|(&sizes, kernels)| {
            kernels.iter().map(move |(pass, kernel)| (pass.clone(), sizes, kernel.clone()))
        });
        let mut all: Vec<_> = at_sizes.collect();
        all.sort();
        all
    }

    pub fn choose<T: Copy>(
        &self,
        pass: &'static str,
        sizes: Sizes,
        candidates: &[(&'static str, T)],
    ) -> T {
        let mut offered = self.offered.borrow_mut();
        let names = offered.entry(pass).or_default();
        for (name, _) in candidates {
            if !names.contains(name) {
                names.push(name);
            }
        }
        if self.watching.get() {
            let kernels = candidates.iter().map(|(name, _)| *name).collect();
            let problem = Problem { pass, sizes, kernels };
            let mut problems = self.problems.borrow_mut();
            if !problems.contains(&problem) {
                problems.push(problem);
            }
        }
        let find = |wanted: &str| candidates.iter().find(|(name, _)| *name == wanted);
        let forced = self.forced.borrow().get(pass).and_then(|kernel| find(kernel));
        let tuned = || {
            let tuned = self.tuned.borrow();
            let (_, kernel) = tuned.get(&sizes)?.iter().find(|(other, _)| other == pass)?;
            find(kernel)
        };
        let &(name, kernel) = forced
            .or_else(tuned)
            .or(candidates.first())
            .expect("a pass offers at least one kernel");
        self.chosen.borrow_mut().insert(pass, name);
        kernel
    }

    /// Keeps the choices made from now on, and forgets those kept before.
    pub fn watch(&self) {
        self.problems.borrow_mut().clear();
        self.watching.set(true);
    }

    /// The choices made since [`Choices::watch`], each once.
    pub fn seen(&self) -> Vec<Problem> {
        self.watching.set(false);
        std::mem::take(&mut self.problems.borrow_mut())
    }

    pub fn forget(&self) {
        self.offered.borrow_mut().clear();
        self.chosen.borrow_mut().clear();
    }

    pub fn chosen(&self, pass: &'static str) -> Option<&'static str> {
        self.chosen.borrow().get(pass).copied()
    }

    pub fn offered(&self, pass: &'static str) -> Vec<&'static str> {
        self.offered.borrow().get(pass).cloned().unwrap_or_default()
    }
}
