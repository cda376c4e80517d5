#include "attention/cuda/sm90/backward/launch.cuh"

namespace tda::cuda::sm90 {
template Status launch_backward<__nv_bfloat16, 64>(const BackwardArguments&, int, CudaStream);
}
