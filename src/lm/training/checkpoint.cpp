#include "lm/training/checkpoint.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <system_error>

#include "lm/durable_file.h"
#include "lm/error.h"

namespace tda {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr const char* kManifest = "manifest.json";
constexpr const char* kFormat = "tda-checkpoint";
constexpr int kVersion = 1;
constexpr std::string_view kStepPrefix = "step-";
constexpr std::string_view kWritingPrefix = ".writing-";
constexpr std::string_view kRemovingPrefix = ".removing-";

std::string step_name(std::int64_t step) { return fmt::format("{}{:06d}", kStepPrefix, step); }

std::optional<std::int64_t> step_of_name(std::string_view name) {
  if (!name.starts_with(kStepPrefix)) return std::nullopt;
  name.remove_prefix(kStepPrefix.size());
  std::int64_t step = 0;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), step);
  if (error != std::errc{} || end != name.data() + name.size() || step < 0) return std::nullopt;
  return step;
}

[[noreturn]] void throw_system_error(const char* action, const fs::path& path, const std::error_code& error) {
  throw Error(fmt::format("cannot {} {}: {}", action, path.string(), error.message()));
}

// A rename first, so that a kill in the middle of the removal leaves no folder that looks like a step.
void remove_step(const fs::path& directory) {
  const fs::path hidden = directory.parent_path() / fmt::format("{}{}", kRemovingPrefix, directory.filename().string());
  std::error_code error;
  fs::remove_all(hidden, error);
  fs::rename(directory, hidden, error);
  if (error) throw_system_error("remove", directory, error);
  fs::remove_all(hidden, error);
  if (error) throw_system_error("remove", hidden, error);
}

std::string checksum_text(std::uint32_t crc) { return fmt::format("{:08x}", crc); }

json make_manifest(const fs::path& directory, std::int64_t step) {
  json files = json::object();
  for (const auto& entry : fs::directory_iterator(directory)) {
    sync_to_disk(entry.path());
    const FileChecksum checksum = checksum_of_file(entry.path());
    files[entry.path().filename().string()] = {{"bytes", checksum.bytes}, {"crc32", checksum_text(checksum.crc32)}};
  }
  json manifest = {{"format", kFormat}, {"version", kVersion}, {"step", step}, {"files", std::move(files)}};
  manifest["manifest_crc32"] = checksum_text(crc32_of(manifest.dump()));
  return manifest;
}

// Throws json::exception for whatever is not a manifest of this format.
std::optional<CheckpointDamage> compare_with_manifest(const fs::path& directory, json manifest) {
  if (manifest.at("format") != kFormat) return CheckpointDamage{kManifest, "is not the manifest of a TDA checkpoint"};
  if (manifest.at("version") != kVersion) {
    return CheckpointDamage{
        kManifest, fmt::format("has version {}, this program reads {}", manifest.at("version").dump(), kVersion)};
  }
  const json own_checksum = manifest.at("manifest_crc32");
  manifest.erase("manifest_crc32");
  if (own_checksum != checksum_text(crc32_of(manifest.dump()))) return CheckpointDamage{kManifest, "was changed"};
  for (const auto& [name, expected] : manifest.at("files").items()) {
    const fs::path file = directory / name;
    std::error_code error;
    if (!fs::is_regular_file(file, error)) return CheckpointDamage{name, "is missing"};
    const auto bytes = expected.at("bytes").get<std::uint64_t>();
    const auto crc = expected.at("crc32").get<std::string>();
    const FileChecksum found = checksum_of_file(file);
    if (found.bytes != bytes) {
      return CheckpointDamage{name, fmt::format("has {} bytes, the manifest says {}", found.bytes, bytes)};
    }
    if (checksum_text(found.crc32) != crc) {
      return CheckpointDamage{name,
                              fmt::format("has CRC-32 {}, the manifest says {}", checksum_text(found.crc32), crc)};
    }
  }
  return std::nullopt;
}

// The newest intact step folder of `siblings` older than `step`.
std::optional<fs::path> newest_valid_before(const std::vector<CheckpointEntry>& siblings, std::int64_t step) {
  for (auto entry = siblings.rbegin(); entry != siblings.rend(); ++entry) {
    if (entry->step < step && !find_damage(entry->directory)) return entry->directory;
  }
  return std::nullopt;
}

std::string damage_message(const fs::path& directory, const CheckpointDamage& damage) {
  return fmt::format("checkpoint {} is damaged: {} {}", directory.string(), damage.file, damage.reason);
}

std::vector<CheckpointEntry> list_step_folders(const fs::path& parent) {
  std::vector<CheckpointEntry> entries;
  std::error_code error;
  for (fs::directory_iterator it(parent, error), end; !error && it != end; it.increment(error)) {
    const auto step = step_of_name(it->path().filename().string());
    if (step && it->is_directory(error)) entries.push_back({*step, it->path()});
  }
  std::sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) { return a.step < b.step; });
  return entries;
}

// A trailing slash would make the folder's own name empty.
fs::path without_trailing_slash(const fs::path& path) { return path.has_filename() ? path : path.parent_path(); }

fs::path resolve_step_folder(const fs::path& directory) {
  const auto damage = find_damage(directory);
  if (!damage) return directory;
  const auto step = step_of_name(fs::absolute(directory).filename().string());
  std::string hint = "name another step folder, or the run directory for its newest valid step";
  if (step) {
    const auto before = newest_valid_before(list_step_folders(fs::absolute(directory).parent_path()), *step);
    hint = before
               ? fmt::format("the one before it is intact: {}", (directory.parent_path() / before->filename()).string())
               : std::string("there is no intact step folder before it");
  }
  throw Error(damage_message(directory, *damage), hint);
}

}  // namespace

fs::path checkpoint_directory(const fs::path& run_directory, std::int64_t step) {
  return run_directory / "checkpoints" / step_name(step);
}

std::vector<CheckpointEntry> list_checkpoints(const fs::path& run_directory) {
  return list_step_folders(run_directory / "checkpoints");
}

std::optional<CheckpointDamage> find_damage(const fs::path& step_directory) {
  std::error_code error;
  if (!fs::is_regular_file(step_directory / kManifest, error)) return CheckpointDamage{kManifest, "is missing"};
  try {
    return compare_with_manifest(step_directory, json::parse(read_file(step_directory / kManifest)));
  } catch (const json::exception&) {
    return CheckpointDamage{kManifest, "is not the manifest of a TDA checkpoint"};
  }
}

fs::path resolve_checkpoint(const fs::path& given) {
  const fs::path path = without_trailing_slash(given);
  std::error_code error;
  if (!fs::exists(path, error)) {
    throw Error(fmt::format("checkpoint {} does not exist", given.string()),
                "name a run directory or one of its checkpoints/step-* folders");
  }
  if (!fs::is_directory(path, error)) {
    throw Error(fmt::format("checkpoint {} is a file; a step folder or a run directory is expected", given.string()));
  }
  if (!fs::is_directory(path / "checkpoints", error)) return resolve_step_folder(path);

  const auto entries = list_checkpoints(path);
  if (entries.empty()) {
    throw Error(fmt::format("{} holds no checkpoint yet", given.string()),
                "a run writes its first one after checkpoint.every steps, or when it is stopped with Ctrl-C");
  }
  for (auto entry = entries.rbegin(); entry != entries.rend(); ++entry) {
    const auto damage = find_damage(entry->directory);
    if (!damage) return entry->directory;
    fmt::print(stderr, "warning: {}; passing over it\n", damage_message(entry->directory, *damage));
  }
  throw Error(fmt::format("{} holds no intact checkpoint", given.string()),
              "every step folder is damaged, as the warnings say");
}

CheckpointWriter::CheckpointWriter(const fs::path& run_directory, std::int64_t step)
    : final_(checkpoint_directory(run_directory, step)), step_(step) {
  const fs::path parent = final_.parent_path();
  temporary_ = parent / fmt::format("{}{}", kWritingPrefix, step_name(step));
  std::error_code error;
  fs::create_directories(parent, error);
  if (error) throw_system_error("create", parent, error);
  fs::remove_all(temporary_, error);
  fs::create_directory(temporary_, error);
  if (error) throw_system_error("create", temporary_, error);
}

CheckpointWriter::~CheckpointWriter() {
  std::error_code ignored;
  if (!temporary_.empty()) fs::remove_all(temporary_, ignored);
}

void CheckpointWriter::commit() {
  write_file_durably(temporary_ / kManifest, make_manifest(temporary_, step_).dump(2) + "\n");
  sync_to_disk(temporary_);
  std::error_code error;
  if (fs::exists(final_, error)) remove_step(final_);
  fs::rename(temporary_, final_, error);
  if (error) throw_system_error("create", final_, error);
  temporary_.clear();
  sync_to_disk(final_.parent_path());
}

void remove_old_checkpoints(const fs::path& run_directory, std::int64_t keep) {
  if (keep == 0) return;
  const auto entries = list_checkpoints(run_directory);
  for (std::size_t i = 0; i + static_cast<std::size_t>(keep) < entries.size(); ++i) remove_step(entries[i].directory);
}

void remove_unfinished_checkpoints(const fs::path& run_directory) {
  std::error_code error;
  std::vector<fs::path> leftovers;
  for (fs::directory_iterator it(run_directory / "checkpoints", error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    if (name.starts_with(kWritingPrefix) || name.starts_with(kRemovingPrefix)) leftovers.push_back(it->path());
  }
  for (const fs::path& leftover : leftovers) {
    fs::remove_all(leftover, error);
    if (error) throw_system_error("remove", leftover, error);
  }
}

}  // namespace tda
