//! Device memory. A [`Buffer`] is a lease of a [`Storage`]; when the last handle to it goes, the
//! storage returns to the pool and the next request of about its size takes it.
//!
//! The device runs what is recorded in order, so a storage can be leased again as soon as the host
//! has recorded its last use. Storages are only described here: memory is allocated when a recorded
//! command that uses one is first submitted. Recording a step without submitting it therefore
//! tells exactly how much memory the step will take (see [`super::Gpu::plan`]).

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::{Rc, Weak};

/// What kernels see of a storage.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Form {
    /// An array to read and write.
    Array,
    /// Texels of four numbers, f16 or f32, to read: see [`super::Gpu::texels`].
    Texels { half: bool },
}

/// Texels in a row of a texture; shaders know it.
pub(super) const TEXELS_IN_ROW: u32 = 1024;

/// Texels behind each row that nothing is in: pixels and windows, whose channels are powers of two apart, would
/// else share the same few lines of a processor's cache.
const GAP: u32 = 4;

/// Rows of a texture that no adapter need exceed.
const TALLEST: u64 = 16384;

impl Form {
    /// Bytes that sizes are multiples of: of texels a row.
    fn unit(self) -> u64 {
        match self {
            Self::Array => 256,
            Self::Texels { .. } => u64::from(TEXELS_IN_ROW + GAP) * self.texel(),
        }
    }

    /// Bytes of a texel.
    fn texel(self) -> u64 {
        if let Self::Texels { half: true } = self { 8 } else { 16 }
    }

    /// Bytes of a storage for so many. Textures' heights are no powers of two: Mesa's software adapters compile
    /// a kernel again for those that are.
    fn bytes_for(self, bytes: u64) -> u64 {
        let units = match self {
            Self::Array => bytes.max(1).div_ceil(self.unit()),
            Self::Texels { .. } => {
                let rows = bytes.div_ceil(self.texel() * u64::from(TEXELS_IN_ROW)).max(3);
                rows + u64::from(rows.is_power_of_two() && rows < TALLEST)
            }
        };
        units * self.unit()
    }
}

/// A piece of device memory, allocated at its first use.
pub(super) struct Storage {
    pub id: u64,
    pub bytes: u64,
    form: Form,
    raw: OnceCell<Raw>,
    /// Bytes of all storages that have been allocated.
    allocated: Rc<Cell<u64>>,
}

enum Raw {
    Array(wgpu::Buffer),
    Texels(wgpu::Texture, wgpu::TextureView),
}

impl Storage {
    /// A range of it.
    pub fn place(&self, offset: u64, bytes: u64) -> Place {
        Place { storage: self.id, offset, bytes }
    }

    /// The device's buffer, allocated now if this is the first use.
    ///
    /// # Panics
    /// If this is no array.
    pub fn buffer(&self, device: &wgpu::Device) -> &wgpu::Buffer {
        match self.materialize(device) {
            Raw::Array(buffer) => buffer,
            Raw::Texels(..) => panic!("texels are only read by kernels"),
        }
    }

    /// Encodes a copy of a range of `from` to the start of these texels, allocated now if this is the first
    /// use: whole rows, and what is left.
    ///
    /// # Panics
    /// If these are no texels.
    pub fn fill(
        &self,
        device: &wgpu::Device,
        encoder: &mut wgpu::CommandEncoder,
        from: &wgpu::Buffer,
        bytes: Range<u64>,
    ) {
        let Raw::Texels(texture, _) = self.materialize(device) else { panic!("an array") };
        let texels = ((bytes.end - bytes.start) / self.form.texel()) as u32;
        let (rows, rest) = (texels / TEXELS_IN_ROW, texels % TEXELS_IN_ROW);
        let in_row = u64::from(TEXELS_IN_ROW) * self.form.texel();
        for (first, width, height) in [(0, TEXELS_IN_ROW, rows), (rows, rest, 1)] {
            if width * height == 0 {
                continue;
            }
            let layout = wgpu::TexelCopyBufferLayout {
                offset: bytes.start + u64::from(first) * in_row,
                bytes_per_row: Some(in_row as u32),
                rows_per_image: None,
            };
            let source = wgpu::TexelCopyBufferInfo { buffer: from, layout };
            let mut to = texture.as_image_copy();
            to.origin.y = first;
            let size = wgpu::Extent3d { width, height, depth_or_array_layers: 1 };
            encoder.copy_buffer_to_texture(source, to, size);
        }
    }

    /// What is bound to a kernel, allocated now if this is the first use: of an array the given range.
    pub fn resource(
        &self,
        device: &wgpu::Device,
        offset: u64,
        bytes: u64,
    ) -> wgpu::BindingResource<'_> {
        match self.materialize(device) {
            Raw::Array(buffer) => range(buffer, offset, bytes),
            Raw::Texels(_, view) => wgpu::BindingResource::TextureView(view),
        }
    }

    /// Allocates the memory if this is the first use.
    fn materialize(&self, device: &wgpu::Device) -> &Raw {
        self.raw.get_or_init(|| {
            self.allocated.set(self.allocated.get() + self.bytes);
            match self.form {
                Form::Array => Raw::Array(device.create_buffer(&wgpu::BufferDescriptor {
                    label: None,
                    size: self.bytes,
                    usage: wgpu::BufferUsages::STORAGE
                        | wgpu::BufferUsages::COPY_SRC
                        | wgpu::BufferUsages::COPY_DST,
                    mapped_at_creation: false,
                })),
                Form::Texels { half } => {
                    let texture = device.create_texture(&wgpu::TextureDescriptor {
                        label: None,
                        size: wgpu::Extent3d {
                            width: TEXELS_IN_ROW + GAP,
                            height: (self.bytes / self.form.unit()) as u32,
                            depth_or_array_layers: 1,
                        },
                        mip_level_count: 1,
                        sample_count: 1,
                        dimension: wgpu::TextureDimension::D2,
                        format: match half {
                            true => wgpu::TextureFormat::Rgba16Float,
                            false => wgpu::TextureFormat::Rgba32Float,
                        },
                        usage: wgpu::TextureUsages::STORAGE_BINDING | wgpu::TextureUsages::COPY_DST,
                        view_formats: &[],
                    });
                    let view = texture.create_view(&Default::default());
                    Raw::Texels(texture, view)
                }
            }
        })
    }
}

/// A range of a buffer, to be bound.
pub(super) fn range(buffer: &wgpu::Buffer, offset: u64, bytes: u64) -> wgpu::BindingResource<'_> {
    let size = std::num::NonZeroU64::new(bytes);
    wgpu::BindingResource::Buffer(wgpu::BufferBinding { buffer, offset, size })
}

impl Drop for Storage {
    fn drop(&mut self) {
        if self.raw.get().is_some() {
            self.allocated.set(self.allocated.get() - self.bytes);
        }
    }
}

/// A handle to leased device memory; clones share it.
#[derive(Clone)]
pub struct Buffer(Rc<Lease>);

struct Lease {
    storage: Rc<Storage>,
    pool: Weak<Pool>,
}

impl Buffer {
    /// Bytes that may be used; at least what was asked for.
    pub fn bytes(&self) -> u64 {
        self.0.storage.bytes
    }

    /// Whether no other handle to this memory exists, so that it may be overwritten in place.
    pub fn is_unique(&self) -> bool {
        Rc::strong_count(&self.0) == 1
    }

    pub(super) fn storage(&self) -> &Rc<Storage> {
        &self.0.storage
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.upgrade() {
            pool.give_back(self.storage.clone());
        }
    }
}

/// A part of a buffer that kernels read or write.
#[derive(Clone)]
pub struct Slice {
    /// The memory.
    pub buffer: Buffer,
    /// First byte; a multiple of 256.
    pub offset: u64,
    /// Number of bytes; a multiple of 4.
    pub bytes: u64,
}

/// Where a slice lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    storage: u64,
    offset: u64,
    bytes: u64,
}

impl Slice {
    /// Where it lies, which holds nothing.
    pub fn place(&self) -> Place {
        let Self { buffer, offset, bytes } = self;
        buffer.storage().place(*offset, *bytes)
    }

    /// The part of `bytes` bytes from `offset` on, a multiple of 256.
    ///
    /// # Panics
    /// If the part is not inside the slice.
    pub fn part(&self, offset: u64, bytes: u64) -> Self {
        assert!(offset + bytes <= self.bytes, "{offset} + {bytes} of a slice of {}", self.bytes);
        Self { buffer: self.buffer.clone(), offset: self.offset + offset, bytes }
    }
}

/// Form, size and number of a storage.
pub(super) type StorageKey = (Form, u64, u64);

/// Storages that are free for the next lease.
#[derive(Default)]
pub(super) struct Pool {
    /// By form, size, then age: what is free alone decides which is leased next, so that work done again
    /// takes the same storages again.
    free: RefCell<BTreeMap<StorageKey, Rc<Storage>>>,
    next_id: Cell<u64>,
    total: Cell<u64>,
    largest: Cell<u64>,
    allocated: Rc<Cell<u64>>,
    /// Whether a lease rather wastes memory than has new memory allocated.
    settled: Cell<bool>,
}

impl Pool {
    /// Leases memory for `bytes` bytes: the smallest free storage that fits without wasting more
    /// than a quarter, else a new one. A settled pool takes any that fits before a new one.
    pub fn lease(self: &Rc<Self>, form: Form, bytes: u64) -> Buffer {
        let bytes = form.bytes_for(bytes);
        if form == Form::Array {
            self.largest.set(self.largest.get().max(bytes));
        }
        let storage = self.take_free(form, bytes).unwrap_or_else(|| {
            self.next_id.set(self.next_id.get() + 1);
            self.total.set(self.total.get() + bytes);
            let (id, allocated) = (self.next_id.get(), self.allocated.clone());
            Rc::new(Storage { id, bytes, form, raw: OnceCell::new(), allocated })
        });
        Buffer(Rc::new(Lease { storage, pool: Rc::downgrade(self) }))
    }

    fn take_free(&self, form: Form, bytes: u64) -> Option<Rc<Storage>> {
        let most = if self.settled.get() { u64::MAX } else { bytes + bytes / 4 };
        let mut free = self.free.borrow_mut();
        let (&key, _) = free.range((form, bytes, 0)..=(form, most, u64::MAX)).next()?;
        free.remove(&key)
    }

    /// What is free.
    pub fn free(&self) -> Vec<StorageKey> {
        self.free.borrow().keys().copied().collect()
    }

    /// Whether just these are free, so that work takes the storages that it took when they were.
    pub fn has_free(&self, free: &[StorageKey]) -> bool {
        self.free.borrow().keys().eq(free)
    }

    fn give_back(&self, storage: Rc<Storage>) {
        self.free.borrow_mut().insert((storage.form, storage.bytes, storage.id), storage);
    }

    /// Holds what planned work takes: smaller work, such as the last batch of an epoch, is to make
    /// do with it. Lasts until [`Pool::trim`].
    pub fn settle(&self) {
        self.settled.set(true);
    }

    /// Drops every free storage.
    pub fn trim(&self) {
        for ((_, bytes, _), _) in std::mem::take(&mut *self.free.borrow_mut()) {
            self.total.set(self.total.get() - bytes);
        }
        self.largest.set(0);
        self.settled.set(false);
    }

    /// Bytes of all storages, leased and free.
    pub fn total_bytes(&self) -> u64 {
        self.total.get()
    }

    /// Bytes of the storages that have been used, and so allocated.
    pub fn allocated_bytes(&self) -> u64 {
        self.allocated.get()
    }

    /// Bytes of the largest array leased since the last trim.
    pub fn largest_bytes(&self) -> u64 {
        self.largest.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_lease_is_taken_again_and_nothing_grows() {
        let pool = Rc::new(Pool::default());
        let first = pool.lease(Form::Array, 1000);
        let id = first.storage().id;
        let copy = first.clone();
        assert!(!first.is_unique());
        drop(first);
        assert_ne!(pool.lease(Form::Array, 1000).storage().id, id, "still leased through the copy");
        drop(copy);
        assert_eq!(pool.total_bytes(), 2048);
        for _ in 0..10 {
            let (a, b) = (pool.lease(Form::Array, 1000), pool.lease(Form::Array, 900));
            assert_ne!(a.storage().id, b.storage().id);
        }
        assert_eq!(pool.total_bytes(), 2048);
        pool.trim();
        assert_eq!(pool.total_bytes(), 0);
    }

    #[test]
    fn work_done_again_takes_the_same_storages_again() {
        let pool = Rc::new(Pool::default());
        let work = || {
            let (first, second) = (pool.lease(Form::Array, 1000), pool.lease(Form::Array, 1000));
            let ids = [first.storage().id, second.storage().id];
            // In the order of the leases: what came back last is not to go first.
            drop(first);
            drop(second);
            ids
        };
        assert_eq!(work(), work());
    }

    #[test]
    fn a_small_lease_does_not_occupy_a_large_storage() {
        let pool = Rc::new(Pool::default());
        drop(pool.lease(Form::Array, 1 << 20));
        drop(pool.lease(Form::Array, 256));
        assert_eq!(pool.total_bytes(), (1 << 20) + 256);
    }

    #[test]
    fn textures_are_as_high_as_no_power_of_two() {
        for half in [false, true] {
            let form = Form::Texels { half };
            let height = |bytes| form.bytes_for(bytes) / form.unit();
            let row = u64::from(TEXELS_IN_ROW) * form.texel();
            assert_eq!([4, 2, 3, 7].map(|rows| height(rows * row)), [5, 3, 3, 7]);
            assert_eq!(height(4 * row + 1), 5);
            assert_eq!(height(0), 3);
        }
    }

    #[test]
    fn arrays_and_texels_are_not_taken_for_each_other() {
        let pool = Rc::new(Pool::default());
        let forms = [Form::Array, Form::Texels { half: false }, Form::Texels { half: true }];
        let ids = || forms.map(|form| pool.lease(form, 1 << 20).storage().id);
        let [array, single, half] = ids();
        assert!(array != single && single != half && half != array);
        assert_eq!(ids(), [array, single, half]);
        // Whole rows of a texture with their gaps, which no binding's limit is about.
        let half = pool.lease(Form::Texels { half: true }, 8 << 20 | 8);
        assert_eq!(half.bytes(), (1024 + 1) * (1024 + 4) * 8);
        assert_eq!(pool.largest_bytes(), 1 << 20);
    }

    #[test]
    fn a_settled_pool_does_not_grow_for_smaller_work() {
        let pool = Rc::new(Pool::default());
        drop((pool.lease(Form::Array, 1 << 20), pool.lease(Form::Array, 1 << 10)));
        pool.settle();
        let (large, small) = (pool.lease(Form::Array, 1 << 12), pool.lease(Form::Array, 256));
        assert_eq!((large.bytes(), small.bytes()), (1 << 20, 1 << 10), "the smallest that fits");
        assert_eq!(pool.total_bytes(), (1 << 20) + (1 << 10));
        assert_eq!(pool.allocated_bytes(), 0, "nothing was used");
    }
}
