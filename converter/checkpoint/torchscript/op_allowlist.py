"""The operators that a TorchScript file may use without `--trust`: arithmetic on tensors, numbers, lists and text.

Operators that read or write files, load code, talk to other processes or set seeds are excluded, as are those that only
run on other devices or on quantized tensors. Random operators are included, because the training branch of many models
has them.
"""

_ARITHMETIC = """
    abs absolute acos acosh add addbmm addcdiv addcmul addmm addmv addr amax amin aminmax angle any all arccos
    arccosh arcsin arcsinh arctan arctan2 arctanh asin asinh atan atan2 atanh baddbmm bmm ceil celu clamp clamp_max
    clamp_min clip copysign cos cosh cummax cummin cumprod cumsum deg2rad digamma div divide dot einsum elu eq erf
    erfc erfinv exp exp2 expm1 fix float_power floor floor_divide floordiv fmax fmin fmod frac gcd ge gelu ger
    greater greater_equal gt heaviside hypot i0 inner inverse isclose isfinite isin isinf isnan isneginf isposinf
    isreal kron kthvalue lcm ldexp le lerp less less_equal lgamma log log10 log1p log2 logaddexp logaddexp2
    logcumsumexp logical_and logical_not logical_or logical_xor logit logsumexp lt matmul max maximum mean median
    min minimum mm mode mul multiply mv mvlgamma nan_to_num nanmean nanmedian nansum ne neg negative nextafter norm
    not_equal nuclear_norm frobenius_norm outer polygamma positive pow prod rad2deg reciprocal relu relu6 remainder
    renorm round rrelu rsqrt rsub selu sgn sigmoid sign signbit silu sin sinc sinh special_digamma special_entr
    special_erf special_erfc special_erfinv special_exp2 special_expit special_expm1 special_gammaln special_i0
    special_i0e special_i1 special_log1p special_log_softmax special_logit special_logsumexp special_ndtr
    special_round special_sinc special_softmax special_xlog1py special_xlogy sqrt square std std_mean std_unbiased
    subtract sub sum tan tanh tensordot trace trapezoid trapz true_divide trunc vander var var_mean vdot xlogy
    bitwise_and bitwise_left_shift bitwise_not bitwise_or bitwise_right_shift bitwise_xor bilinear cdist cross
    cosine_similarity pairwise_distance pdist dist det logdet slogdet pinverse matrix_power matrix_exp cholesky
    cholesky_inverse cholesky_solve triangular_solve chain_matmul linalg_cholesky linalg_cholesky_ex linalg_cond
    linalg_cross linalg_det linalg_diagonal linalg_eigh linalg_eigvalsh linalg_inv linalg_inv_ex linalg_lstsq
    linalg_matmul linalg_matrix_exp linalg_matrix_norm linalg_matrix_power linalg_matrix_rank linalg_multi_dot
    linalg_norm linalg_pinv linalg_qr linalg_slogdet linalg_solve linalg_solve_ex linalg_solve_triangular linalg_svd
    linalg_svdvals linalg_vecdot linalg_vector_norm svd qr fft_fft fft_ifft fft_rfft fft_irfft fft_fft2 fft_ifft2
    fft_rfft2 fft_irfft2 fft_fftn fft_ifftn fft_rfftn fft_irfftn fft_fftshift fft_ifftshift fft_hfft fft_ihfft stft
    istft complex polar real imag view_as_complex view_as_real conj resolve_conj resolve_neg conj_physical
    is_complex cov corrcoef diff gradient
"""
_LAYERS = """
    _convolution conv1d conv2d conv3d convolution conv_tbc conv_transpose1d conv_transpose2d conv_transpose3d linear
    embedding embedding_bag embedding_renorm_ batch_norm group_norm instance_norm layer_norm native_layer_norm
    native_group_norm native_batch_norm rms_norm adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
    adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d avg_pool1d avg_pool2d avg_pool3d max_pool1d
    max_pool1d_with_indices max_pool2d max_pool2d_with_indices max_pool3d max_pool3d_with_indices max_unpool2d
    max_unpool3d dropout feature_dropout alpha_dropout feature_alpha_dropout glu hardshrink hardsigmoid hardswish
    hardtanh leaky_relu log_sigmoid log_softmax mish prelu softmax softplus softshrink softsign tanhshrink threshold
    rrelu gru gru_cell lstm lstm_cell rnn_relu rnn_relu_cell rnn_tanh rnn_tanh_cell scaled_dot_product_attention
    _native_multi_head_attention _transformer_encoder_layer_fwd _nested_tensor_from_mask
    _nested_tensor_from_mask_left_aligned affine_grid_generator grid_sampler grid_sampler_2d grid_sampler_3d col2im
    im2col pixel_shuffle pixel_unshuffle channel_shuffle upsample_bicubic2d upsample_bilinear2d upsample_linear1d
    upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_trilinear3d _upsample_bicubic2d_aa
    _upsample_bilinear2d_aa _upsample_lanczos2d_aa _upsample_nearest_exact1d _upsample_nearest_exact2d
    _upsample_nearest_exact3d constant_pad_nd pad reflection_pad1d reflection_pad2d reflection_pad3d
    replication_pad1d replication_pad2d replication_pad3d _weight_norm _weight_norm_interface _softmax _log_softmax
"""
_LOSSES = """
    binary_cross_entropy binary_cross_entropy_with_logits cosine_embedding_loss cross_entropy_loss ctc_loss
    hinge_embedding_loss huber_loss kl_div l1_loss margin_ranking_loss mse_loss multi_margin_loss
    multilabel_margin_loss nll_loss nll_loss_nd nll_loss2d poisson_nll_loss smooth_l1_loss soft_margin_loss
    triplet_margin_loss fractional_max_pool2d fractional_max_pool3d
"""
_SHAPES = """
    T mT H mH numpy_T adjoint alias argmax argmin argsort argwhere as_strided atleast_1d atleast_2d atleast_3d
    as_strided_scatter block_diag broadcast_tensors broadcast_to bucketize cartesian_prod cat chunk clone
    column_stack combinations concat concatenate contiguous count_nonzero detach diag diag_embed diagflat diagonal
    diagonal_scatter dsplit dstack expand expand_as flatten flip fliplr flipud gather hsplit hstack index index_add
    index_copy index_fill index_put index_reduce index_select lift lift_fresh masked_fill masked_scatter
    masked_select meshgrid moveaxis movedim narrow narrow_copy nonzero nonzero_numpy one_hot permute put ravel
    repeat repeat_interleave reshape reshape_as roll rot90 row_stack scatter scatter_add scatter_reduce searchsorted
    select select_scatter slice slice_scatter sort split split_with_sizes squeeze stack swapaxes swapdims t take
    take_along_dim tensor_split tile to_padded_tensor topk transpose tril triu tril_indices triu_indices type_as
    unbind unflatten unfold unique_consecutive unique_dim _unique2 unsafe_chunk unsafe_split unsafe_split_with_sizes
    unsqueeze view view_as vsplit vstack where histc bincount arange eye fill full full_like linspace logspace
    new_full new_ones new_tensor new_zeros ones ones_like range scalar_tensor tensor as_tensor zero zeros zeros_like
    copy copy_ to _to_copy cpu float double half int long bool type requires_grad_ result_type promote_types
    can_cast hann_window hamming_window blackman_window bartlett_window
"""
_RANDOM = """
    bernoulli empty empty_like exponential multinomial new_empty normal rand rand_like randint randn randn_like
    randperm uniform
"""
_FACTS = """
    size dim numel len element_size is_floating_point is_complex is_contiguous is_nonzero is_same_size is_signed
    is_conj is_neg item stride storage_offset Size nbytes ndimension equal allclose sym_size sym_numel
    is_grad_enabled is_autocast_enabled is_autocast_cpu_enabled get_autocast_dtype is_scripting _get_tracing_state
    has_torch_function _assert_async _assert_tensor_metadata _infer_size broadcast_shapes device
"""
_PYTHON = """
    Bool Float Int IntImplicit FloatImplicit ScalarImplicit Complex ComplexImplicit __and__ __or__ __xor__ __not__
    __is__ __isnot__ __contains__ __getitem__ _set_item __lshift__ __rshift__ __iand__ __ior__ __ixor__
    __range_length __derive_index __round_to_zero_floordiv mathremainder divmod _unwrap_optional append extend
    insert pop reverse clear copy count index list remove sorted keys values items get dict setdefault update
    popitem Delete str format join lower upper strip lstrip rstrip startswith endswith replace find isdigit isalpha
    ord chr warn degrees radians fabs factorial
"""
_PRIM = """
    Constant GetAttr SetAttr If Loop CallMethod CallFunction ListConstruct ListUnpack TupleConstruct TupleUnpack
    TupleIndex TupleSlice DictConstruct NumToTensor RaiseException Uninitialized unchecked_cast
    unchecked_unwrap_optional isinstance Print min max abs data dtype device layout is_cuda is_cpu is_quantized
    is_sparse is_mkldnn is_mps is_meta is_nested is_vulkan is_xla is_xpu is_ipu is_mtia is_maia is_sparse_csr
    requires_grad rangelist itemsize nbytes type id annotate Return Load Store ConstantChunk name shape tolist
"""
_TORCHVISION = "deform_conv2d nms roi_align roi_pool ps_roi_align ps_roi_pool"

_TENSORS = {*_ARITHMETIC.split(), *_LAYERS.split(), *_LOSSES.split(), *_SHAPES.split(), *_RANDOM.split()}

ALLOWED = {
    *(f"aten::{name}" for name in _TENSORS),
    *(f"aten::{name}_" for name in _TENSORS if not name.endswith("_")),  # in place
    *(f"aten::{name}" for name in (*_FACTS.split(), *_PYTHON.split())),
    *(f"prim::{name}" for name in _PRIM.split()),
    *(f"torchvision::{name}" for name in _TORCHVISION.split()),
}
