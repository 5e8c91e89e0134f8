//! Whether a classifier is one for given classes, and its rows in their order.

use std::fmt::Display;

use super::{Checkpoint, HostTensor};

impl Checkpoint {
    /// What else each output is called, such as by WordNet's ids, in order; empty where the file does
    /// not say, or not for each output. In its header they are one string, `class_ids`, with blanks
    /// between them.
    pub fn class_ids(&self) -> Vec<String> {
        let ids = self.meta.class_ids();
        if self.num_classes() == Some(ids.len()) { ids } else { Vec::new() }
    }

    /// Calls the classes by their ids ([`Checkpoint::class_ids`]) if that is what `classes` are called.
    pub fn call_classes_like(&mut self, classes: &[String]) {
        let ids = self.class_ids();
        let known = !classes.is_empty() && classes.iter().all(|class| ids.contains(class));
        if known && !self.is_for(classes) {
            self.meta.classes = Some(ids);
            self.meta.set_class_ids(&[]);
        }
    }

    /// Whether the classifier is one for these classes, in whatever order; one without names needs
    /// as many outputs.
    pub fn is_for(&self, classes: &[String]) -> bool {
        match (&self.meta.classes, self.num_classes()) {
            (Some(own), _) => {
                own.len() == classes.len() && classes.iter().all(|class| own.contains(class))
            }
            (None, outputs) => outputs == Some(classes.len()),
        }
    }

    /// Fails unless [`Checkpoint::is_for`]: says which classes do not agree with those of `whose`.
    ///
    /// # Errors
    /// The text for an error about the checkpoint's file.
    pub fn check_is_for(&self, classes: &[String], whose: &dyn Display) -> Result<(), String> {
        let Some(outputs) = self.num_classes() else {
            return Err("it has no classifier (fc); fine-tune it first".into());
        };
        match &self.meta.classes {
            _ if self.is_for(classes) => Ok(()),
            Some(own) => {
                Err(format!("has other classes than {whose}: {}", differences(own, classes)))
            }
            None => Err(format!(
                "has {outputs} classes without names, but {whose} has {}",
                classes.len()
            )),
        }
    }

    /// Brings the classifier's rows into the order of `classes`, by name.
    ///
    /// # Errors
    /// Those of [`Checkpoint::check_is_for`].
    pub fn order_classes(&mut self, classes: &[String], whose: &dyn Display) -> Result<(), String> {
        self.check_is_for(classes, whose)?;
        let own = self.meta.classes.replace(classes.to_vec());
        if let Some(own) = own.filter(|own| own != classes) {
            let of = |class: &String| own.iter().position(|name| name == class).unwrap_or_default();
            let rows: Vec<usize> = classes.iter().map(of).collect();
            let ids = self.class_ids();
            if !ids.is_empty() {
                let ids: Vec<String> = rows.iter().map(|&row| ids[row].clone()).collect();
                self.meta.set_class_ids(&ids);
            }
            for name in ["fc.weight", "fc.bias"] {
                if let Some(tensor) = self.tensors.get_mut(name) {
                    *tensor = select_rows(tensor, &rows);
                }
            }
        }
        Ok(())
    }
}

fn select_rows(tensor: &HostTensor, rows: &[usize]) -> HostTensor {
    let data = tensor.as_f32().unwrap_or_default();
    let width = data.len() / tensor.shape[0].max(1);
    let row = |&row: &usize| &data[row * width..(row + 1) * width];
    HostTensor::f32(tensor.shape.clone(), rows.iter().flat_map(row).copied().collect())
}

/// Which names only one of two lists has.
fn differences(own: &[String], classes: &[String]) -> String {
    const SHOWN: usize = 5;
    let only = |of: &[String], not: &[String]| {
        let mut names: Vec<&str> =
            of.iter().filter(|name| !not.contains(name)).map(String::as_str).collect();
        let more = if names.len() > SHOWN { ", …" } else { "" };
        names.truncate(SHOWN);
        names.join(", ") + more
    };
    let (surplus, missing) = (only(own, classes), only(classes, own));
    match (surplus.is_empty(), missing.is_empty()) {
        (false, false) => format!("{surplus} instead of {missing}"),
        (false, true) => format!("also {surplus}"),
        (true, false) => format!("it lacks {missing}"),
        (true, true) => "some of its names come twice".into(),
    }
}
