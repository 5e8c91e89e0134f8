//! Units that multiply small matrices a subgroup at a time: tensor cores, cooperative matrices.

/// What kernels must know of an adapter's matrix units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MatrixUnits {
    /// Rows and columns of each of the three matrices of a product: 8 or 16.
    pub side: u32,
    /// Lanes of the subgroup that a matrix belongs to.
    pub lanes: u32,
    /// Whether they can load from arrays of vec4; on Metal, only from arrays of single numbers.
    pub wide_loads: bool,
}

impl MatrixUnits {
    /// Those for matrices of `of`, adding up in f32, with the largest side that shaders can name.
    pub(super) fn of(
        adapter: &wgpu::Adapter,
        of: wgpu::CooperativeScalarType,
        lanes: u32,
    ) -> Option<Self> {
        let shapes = adapter.cooperative_matrix_properties();
        let offers = |&side: &u32| {
            shapes.iter().any(|shape| {
                [shape.m_size, shape.n_size, shape.k_size] == [side; 3]
                    && shape.ab_type == of
                    && shape.cr_type == wgpu::CooperativeScalarType::F32
            })
        };
        let wide_loads = adapter.get_info().backend != wgpu::Backend::Metal;
        [16, 8].into_iter().find(offers).map(|side| Self { side, lanes, wide_loads })
    }
}
