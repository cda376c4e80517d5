#include "lm/model/safetensors.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

#include "lm/error.h"

namespace tda {
namespace {

static_assert(std::endian::native == std::endian::little, "the format is little-endian");

constexpr std::size_t kLengthBytes = 8;
constexpr std::uint64_t kLargestHeader = 100'000'000;  // the limit of the format's reference implementation
constexpr std::size_t kHeaderAlignment = 8;

struct TypeName {
  std::string_view name;
  at::ScalarType type;
};
constexpr TypeName kTypes[] = {{"F64", at::kDouble}, {"F32", at::kFloat}, {"F16", at::kHalf},  {"BF16", at::kBFloat16},
                               {"I64", at::kLong},   {"I32", at::kInt},   {"I16", at::kShort}, {"I8", at::kChar},
                               {"U8", at::kByte},    {"BOOL", at::kBool}};

[[noreturn]] void refuse(const std::filesystem::path& path, const std::string& problem) {
  throw Error(fmt::format("{}: {}", path.string(), problem));
}

// One entry of the header; `what` names it in messages.
SafetensorsFile::Entry parse_entry(const nlohmann::json& json, const std::filesystem::path& path,
                                   const std::string& what, std::size_t buffer_bytes) {
  if (!json.is_object() || !json.contains("dtype") || !json.contains("shape") || !json.contains("data_offsets")) {
    refuse(path, what + " lacks dtype, shape or data_offsets");
  }
  SafetensorsFile::Entry entry{};
  const auto& dtype = json["dtype"];
  const auto* type = std::find_if(std::begin(kTypes), std::end(kTypes),
                                  [&](const TypeName& t) { return dtype.is_string() && dtype == t.name; });
  if (type == std::end(kTypes)) refuse(path, fmt::format("{} has the unknown dtype {}", what, dtype.dump()));
  entry.type = type->type;

  const auto& shape = json["shape"];
  std::uint64_t bytes = c10::elementSize(entry.type);
  if (!shape.is_array()) refuse(path, what + " has a shape that is no list");
  for (const auto& size : shape) {
    if (!size.is_number_unsigned() || size.get<std::uint64_t>() > static_cast<std::uint64_t>(INT64_MAX) ||
        __builtin_mul_overflow(bytes, size.get<std::uint64_t>(), &bytes)) {
      refuse(path, fmt::format("{} has the impossible shape {}", what, shape.dump()));
    }
    entry.shape.push_back(size.get<std::int64_t>());
  }

  const auto& offsets = json["data_offsets"];
  if (!offsets.is_array() || offsets.size() != 2 || !offsets[0].is_number_unsigned() ||
      !offsets[1].is_number_unsigned()) {
    refuse(path, fmt::format("{} has data_offsets {}, expected [begin, end]", what, offsets.dump()));
  }
  const auto begin = offsets[0].get<std::uint64_t>(), end = offsets[1].get<std::uint64_t>();
  if (begin > end || end > buffer_bytes) {
    refuse(path, fmt::format("{} lies at bytes {} of a buffer of {} bytes: the file is truncated or damaged", what,
                             offsets.dump(), buffer_bytes));
  }
  if (end - begin != bytes) {
    refuse(path, fmt::format("{} of shape {} needs {} bytes, its data_offsets hold {}", what, shape.dump(), bytes,
                             end - begin));
  }
  entry.begin = begin;
  entry.end = end;
  return entry;
}

// Every byte of the buffer belongs to exactly one tensor.
void check_coverage(const std::map<std::string, SafetensorsFile::Entry>& entries, const std::filesystem::path& path,
                    std::size_t buffer_bytes) {
  std::vector<std::pair<const SafetensorsFile::Entry*, const std::string*>> order;
  for (const auto& [name, entry] : entries) order.emplace_back(&entry, &name);
  std::sort(order.begin(), order.end(), [](const auto& a, const auto& b) {
    return std::pair(a.first->begin, a.first->end) < std::pair(b.first->begin, b.first->end);
  });
  std::size_t covered = 0;
  for (const auto& [entry, name] : order) {
    if (entry->begin < covered) refuse(path, fmt::format("tensor {} overlaps another tensor", *name));
    if (entry->begin > covered) refuse(path, fmt::format("there is a gap before tensor {}", *name));
    covered = entry->end;
  }
  if (covered != buffer_bytes) {
    refuse(path, fmt::format("{} bytes follow the last tensor", buffer_bytes - covered));
  }
}

// Keys that occur twice would silently hide a tensor.
nlohmann::json parse_header(const char* begin, std::size_t length, const std::filesystem::path& path) {
  std::vector<std::string> seen;
  bool repeated = false;
  const auto callback = [&](int depth, nlohmann::json::parse_event_t event, nlohmann::json& value) {
    if (event == nlohmann::json::parse_event_t::key && depth == 1) seen.push_back(value.get<std::string>());
    return true;
  };
  auto header = nlohmann::json::parse(begin, begin + length, callback, false);
  if (header.is_discarded() || !header.is_object()) refuse(path, "the header is not a JSON object");
  std::sort(seen.begin(), seen.end());
  repeated = std::adjacent_find(seen.begin(), seen.end()) != seen.end();
  if (repeated) refuse(path, "the header names a tensor twice");
  return header;
}

}  // namespace

SafetensorsFile::SafetensorsFile(const std::filesystem::path& path) : map_(path) {
  const std::byte* file = map_.bytes().data();
  const std::size_t size = map_.bytes().size();
  if (size < kLengthBytes) refuse(path, fmt::format("{} bytes are too few for a safetensors file", size));
  std::uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, file, kLengthBytes);
  if (header_bytes > kLargestHeader || header_bytes > size - kLengthBytes) {
    refuse(path, fmt::format("the header claims {} bytes of a file of {}: truncated, or not safetensors", header_bytes,
                             size));
  }
  const auto* text = reinterpret_cast<const char*>(file + kLengthBytes);
  const auto header = parse_header(text, header_bytes, path);
  buffer_ = file + kLengthBytes + header_bytes;
  const std::size_t buffer_bytes = size - kLengthBytes - header_bytes;
  for (const auto& [name, value] : header.items()) {
    if (name == "__metadata__") {
      if (!value.is_object()) refuse(path, "__metadata__ is not an object");
      for (const auto& [key, text_value] : value.items()) {
        if (!text_value.is_string()) refuse(path, fmt::format("__metadata__ {} is not a string", key));
        metadata_[key] = text_value.get<std::string>();
      }
      continue;
    }
    entries_.emplace(name, parse_entry(value, path, "tensor " + name, buffer_bytes));
  }
  check_coverage(entries_, path, buffer_bytes);
}

at::Tensor SafetensorsFile::tensor(const std::string& name) const {
  const auto found = entries_.find(name);
  if (found == entries_.end()) refuse(map_.path(), fmt::format("tensor {} is missing", name));
  const Entry& entry = found->second;
  auto result = at::empty(entry.shape, entry.type);
  // The buffer need not be aligned to the element size, hence bytes.
  if (entry.end > entry.begin) std::memcpy(result.mutable_data_ptr(), buffer_ + entry.begin, entry.end - entry.begin);
  return result;
}

void write_safetensors(const std::filesystem::path& path,
                       const std::vector<std::pair<std::string, at::Tensor>>& tensors,
                       const std::map<std::string, std::string>& metadata) {
  nlohmann::ordered_json header;
  if (!metadata.empty()) header["__metadata__"] = metadata;
  std::size_t offset = 0;
  for (const auto& [name, tensor] : tensors) {
    const auto* type = std::find_if(std::begin(kTypes), std::end(kTypes),
                                    [wanted = tensor.scalar_type()](const TypeName& t) { return t.type == wanted; });
    if (type == std::end(kTypes)) throw Error(fmt::format("tensor {} has a type that safetensors lacks", name));
    header[name] = {
        {"dtype", type->name}, {"shape", tensor.sizes().vec()}, {"data_offsets", {offset, offset + tensor.nbytes()}}};
    offset += tensor.nbytes();
  }
  std::string text = header.is_null() ? "{}" : header.dump();
  text.resize((text.size() + kHeaderAlignment - 1) / kHeaderAlignment * kHeaderAlignment, ' ');

  errno = 0;
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  const std::uint64_t header_bytes = text.size();
  file.write(reinterpret_cast<const char*>(&header_bytes), kLengthBytes);
  file.write(text.data(), static_cast<std::streamsize>(text.size()));
  for (const auto& [name, tensor] : tensors) {
    const auto values = tensor.detach().to(at::kCPU).contiguous();
    file.write(static_cast<const char*>(values.const_data_ptr()), static_cast<std::streamsize>(values.nbytes()));
    if (!file) break;
  }
  file.close();
  if (!file) throw Error(fmt::format("cannot write {}: {}", path.string(), std::strerror(errno)));
}

}  // namespace tda
