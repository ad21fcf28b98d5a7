"""Public names that the sweep does not call, each with its reason: module -> reason -> names."""

DTYPE = "a dtype, or a class of dtypes"
TYPE = "a class or an enumeration, not a function of arrays"
HOST = "works on the host: files, text, objects, or values that tracing does not have"
STATIC = "says something about shapes, dtypes or parameters; takes or returns no float array"
RANDOM = "draws random bits: no float argument"
SCALED = "needs a low-precision matrix unit: not on CPU"
TRANSFORM = (
    "a transformation of modules or functions, tested in tests/test_composition_flax.py or without arrays"
)
META = "state, metadata or structure of modules, not arithmetic"

EXCLUDED = {
    "jax.numpy": {
        DTYPE: """bfloat16 bool bool_ cdouble character complex128 complex64 complex_ complexfloating csingle double
        dtype flexible
        float16 float32 float4_e2m1fn float64 float6_e2m3fn float6_e3m2fn float8_e3m4 float8_e4m3 float8_e4m3b11fnuz
        float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz float8_e8m0fnu float_ floating generic inexact int1 int16
        int2 int32 int4 int64 int8 int_ integer number object_ signedinteger single uint uint1 uint16 uint2 uint32 uint4
        uint64 uint8 unsignedinteger""",
        TYPE: "ComplexWarning ndarray ufunc",
        HOST: """array_repr array_str from_dlpack frombuffer fromfile fromiter fromstring get_printoptions load
        printoptions save
        savez set_printoptions trim_zeros""",
        STATIC: """broadcast_shapes can_cast einsum_path finfo iinfo iscomplexobj isdtype isrealobj isscalar issubdtype iterable
        ndim promote_types result_type shape size""",
    },
    "jax.lax": {
        TYPE: """AccuracyMode ConvDimensionNumbers ConvGeneralDilatedDimensionNumbers DotAlgorithm DotAlgorithmPreset
        DotDimensionNumbers FftType GatherDimensionNumbers GatherScatterMode Precision PrecisionLike RaggedDotDimensionNumbers
        RandomAlgorithm RoundingMethod ScatterDimensionNumbers Tolerance""",
        STATIC: """broadcast_shapes conv_dimension_numbers conv_general_permutations conv_general_shape_tuple conv_shape_tuple
        conv_transpose_shape_tuple dtype iota padtype_to_pads reduce_window_shape_tuple shape_as_value empty""",
        HOST: "after_all create_token dce_sink",
        "puts a value into a trace, unchanged": "stage",
        RANDOM: "rng_bit_generator rng_uniform",
        SCALED: "scaled_dot",
        "communicates between several devices": "pbroadcast pcast precv psend ragged_all_to_all",
        "needs a mesh around it: tests/test_composition_devices.py": "with_sharding_constraint",
    },
    "jax.lax.linalg": {TYPE: "EigImplementation EighImplementation SvdAlgorithm"},
    "jax.nn": {SCALED: "get_scaled_dot_general_config scaled_dot_general scaled_matmul"},
    "jax.image": {TYPE: "ResizeMethod"},
    "jax.scipy": {TYPE: "optimize.OptimizeResults"},
    "jax.scipy.special": {"integer orders only, in x64 mode": "sph_harm_y"},
    "flax.linen": {
        TYPE: """DenyList FrozenDict LogicallyPartitioned Module Partitioned RNNCellBase Variable""",
        SCALED: "Fp8DirectDotGeneralOp Fp8DotGeneral Fp8DotGeneralOp Fp8Einsum NANOOFp8DotGeneralOp",
        TRANSFORM: """add_metadata_axis compact compact_name_scope cond custom_vjp fold_rngs grad jit jvp map_variables
        remat_scan scan switch value_and_grad vjp vmap while_loop nowrap named_call""",
        META: """apply disable_named_call enable_named_call get_logical_axis_rules get_partition_spec get_sharding init
        init_with_output intercept_methods logical_axis_rules logical_to_mesh logical_to_mesh_axes logical_to_mesh_sharding
        merge_param override_named_call set_logical_axis_rules share_scope tabulate unbox with_logical_constraint
        with_logical_partitioning with_partitioning""",
        "fills parameters": "ones ones_init zeros zeros_init",
    },
    "flax.nnx": {
        TYPE: "Module RNNCellBase",
        TRANSFORM: """call cond custom_vjp eval_shape fori_loop grad jit jit_partial jvp make_jaxpr map pmap remat scan
        shard_map
        switch value_and_grad vjp vmap while_loop cached_partial checkify""",
        META: """All Any BatchStat Cache Carry Data Dict DiffState EMA Everything FlatState GraphDef GraphState Initializer
        Intermediate List LoRAParam MergeContext Metric ModelAndOptimizer MultiMetric NodeStates Not Nothing Object OfType
        OptArray OptState OptVariable Optimizer Param PathContains Perturbation PureState Pytree RngCount RngKey RngState
        RngStream Rngs SplitContext State StateAxes StateSharding Static TrainState UpdateContext Variable VariableMetadata
        WithTag abstract_with_sharding as_abstract as_pure capture check_pytree clone current_update_context data dataclass
        display filter_state find_duplicates flatten fork_rngs from_flat_state from_tree get_abstract_model
        get_named_sharding get_partition_spec graphdef has_data is_data iter_children iter_graph iter_module_children
        iter_modules logical_axis_rules map_state merge merge_context merge_state pop prefix pure recursive_map
        register_data_type register_variable_name replace_by_pure_dict reseed restore_int_paths restore_rngs set_graph_mode
        set_graph_updates set_metadata split split_context split_rngs split_state state static tabulate to_flat_state
        to_pure_dict to_tree transform_metadata unflatten unpack update update_context use_eager_sharding
        using_eager_sharding var_defaults variable_name_from_type variable_type_from_name variables vars_as view view_info
        with_attributes with_metadata with_partitioning with_rngs with_vars""",
    },
}
