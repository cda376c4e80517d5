#include <torch/torch.h>

#include <cstdio>

int main() {
  std::printf("tda %s on torch %s\n", TDA_VERSION, TORCH_VERSION);
  return 0;
}
