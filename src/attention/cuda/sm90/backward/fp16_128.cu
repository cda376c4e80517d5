#include "attention/cuda/sm90/backward/launch.cuh"

namespace tda::cuda::sm90 {
template Status launch_backward<__half, 128>(const BackwardArguments&, int, CudaStream);
}
