// The safetensors file format: an 8-byte little-endian header length, a JSON header, and one contiguous buffer.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "lm/mapped_file.h"

namespace tda {

// Opens a file read-only through a memory map. The constructor checks everything that can be checked without reading
// the values: header length, JSON, dtypes, shapes, offsets that cover the buffer exactly and in no place twice. Throws
// Error naming the file and the tensor.
class SafetensorsFile {
 public:
  explicit SafetensorsFile(const std::filesystem::path& path);

  struct Entry {
    at::ScalarType type;  // F64 F32 F16 BF16 I64 I32 I16 I8 U8 BOOL
    std::vector<std::int64_t> shape;
    std::size_t begin, end;  // bytes in the buffer
  };
  const std::map<std::string, Entry>& entries() const { return entries_; }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  bool contains(const std::string& name) const { return entries_.contains(name); }

  // A copy of the values. Throws Error when the name is absent.
  at::Tensor tensor(const std::string& name) const;

 private:
  MappedFile map_;
  const std::byte* buffer_ = nullptr;
  std::map<std::string, Entry> entries_;
  std::map<std::string, std::string> metadata_;
};

// Writes the tensors in the given order, one at a time, to `path`, which is overwritten. Callers that need the file to
// appear whole or not at all write to a temporary name, sync and rename. Throws Error when the disk refuses.
void write_safetensors(const std::filesystem::path& path,
                       const std::vector<std::pair<std::string, at::Tensor>>& tensors,
                       const std::map<std::string, std::string>& metadata = {});

}  // namespace tda
