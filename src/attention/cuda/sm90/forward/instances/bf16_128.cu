#include "attention/cuda/sm90/forward/launch.cuh"

namespace tda::cuda::sm90 {
template Status launch_forward<__nv_bfloat16, 128, false>(const ForwardArguments&, int, cudaStream_t);
}
