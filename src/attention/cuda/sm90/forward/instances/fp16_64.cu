#include "attention/cuda/sm90/forward/launch.cuh"

namespace tda::cuda::sm90 {
template Status launch_forward<__half, 64, false>(const ForwardArguments&, int, cudaStream_t);
}
