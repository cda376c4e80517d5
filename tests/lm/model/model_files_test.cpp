#include "lm/model/model_files.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>

#include "../training/temporary_directory.h"
#include "lm/error.h"
#include "lm/model/safetensors.h"
#include "small_model.h"

namespace tda {
namespace {

using test::small_config;
using test::small_model;

void expect_refusal(const std::function<void()>& action, const std::vector<std::string>& parts) {
  try {
    action();
    FAIL() << "expected an error with: " << parts.front();
  } catch (const Error& error) {
    for (const auto& part : parts) EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
  }
}

class ModelFiles : public testing::Test {
 protected:
  void write(const std::string& name, const std::string& content) const {
    std::ofstream(path_ / name, std::ios::binary) << content;
  }
  void write_safetensors_text(const std::string& header, const std::string& buffer) const {
    const std::uint64_t size = header.size();
    write("x.safetensors", std::string(reinterpret_cast<const char*>(&size), 8) + header + buffer);
  }
  void expect_refused(const std::string& header, const std::string& buffer, const std::string& part) const {
    write_safetensors_text(header, buffer);
    expect_refusal([&] { SafetensorsFile file(path_ / "x.safetensors"); }, {"x.safetensors", part});
  }

  TemporaryDirectory directory_;
  std::filesystem::path path_ = directory_.path();
};

TEST_F(ModelFiles, ModelSurvives) {
  const auto model = small_model(small_config("tda"));
  save_model(path_, *model);
  const auto loaded = load_model(path_);
  EXPECT_EQ(loaded->config(), model->config());
  for (std::size_t i = 0; i < model->parameters().size(); ++i) {
    EXPECT_EQ(loaded->parameters()[i].name, model->parameters()[i].name);
    EXPECT_TRUE(at::equal(loaded->parameters()[i].tensor, model->parameters()[i].tensor));
    EXPECT_TRUE(loaded->parameters()[i].tensor.requires_grad());
  }
}

TEST_F(ModelFiles, RefusesWhatDoesNotFitTheConfig) {
  const auto model = small_model(small_config("tda"));
  save_model(path_, *model);
  auto json = model->config().to_json();
  const auto rewrite = [&](const char* key, const nlohmann::json& value) {
    auto changed = json;
    changed[key] = value;
    write("config.json", changed.dump());
  };
  rewrite("vocab_size", 384);
  expect_refusal([&] { load_model(path_); },
                 {"model.safetensors", "embedding.weight", "has shape (320, 64)", "expected (384, 64)"});
  rewrite("num_hidden_layers", 3);
  expect_refusal([&] { load_model(path_); }, {"model.safetensors", "layers.2.attention_norm.weight", "is missing"});
  rewrite("num_hidden_layers", 1);
  expect_refusal([&] { load_model(path_); }, {"model.safetensors", "layers.1.", "unknown"});
  rewrite("mechanism", "softmax");
  expect_refusal([&] { load_model(path_); }, {"layers.0.attention.query.weight", "is missing"});
  write("config.json", "{");
  expect_refusal([&] { load_model(path_); }, {"config.json", "not valid JSON"});
  std::filesystem::remove(path_ / "config.json");
  expect_refusal([&] { load_model(path_); }, {"config.json", "No such file"});
}

TEST_F(ModelFiles, RefusesATruncatedFileAtEveryLength) {
  save_model(path_, *small_model(small_config("softmax")));
  std::ifstream in(path_ / "model.safetensors", std::ios::binary);
  const std::string whole((std::istreambuf_iterator<char>(in)), {});
  for (const std::size_t size :
       {std::size_t{0}, std::size_t{5}, std::size_t{8}, std::size_t{100}, whole.size() / 2, whole.size() - 1}) {
    write("model.safetensors", whole.substr(0, size));
    expect_refusal([&] { load_model(path_); }, {"model.safetensors"});
  }
  write("model.safetensors", whole + "x");
  expect_refusal([&] { load_model(path_); }, {"model.safetensors", "1 bytes follow the last tensor"});
}

TEST_F(ModelFiles, SafetensorsKeepsEveryTypeAndShape) {
  std::vector<std::pair<std::string, at::Tensor>> tensors;
  for (const auto type : {at::kDouble, at::kFloat, at::kHalf, at::kBFloat16, at::kLong, at::kInt, at::kShort, at::kChar,
                          at::kByte, at::kBool}) {
    tensors.emplace_back(c10::toString(type), at::arange(6).reshape({2, 3}).remainder(2).to(type));
  }
  tensors.emplace_back("scalar", at::tensor(3.5));
  tensors.emplace_back("empty", at::zeros({0, 4}));
  tensors.emplace_back("strided", at::arange(6.0).reshape({2, 3}).t());
  write_safetensors(path_ / "x.safetensors", tensors, {{"note", "a \"quoted\" text"}});
  const SafetensorsFile file(path_ / "x.safetensors");
  EXPECT_EQ(file.metadata().at("note"), "a \"quoted\" text");
  EXPECT_EQ(file.entries().size(), tensors.size());
  for (const auto& [name, tensor] : tensors) {
    EXPECT_EQ(file.tensor(name).scalar_type(), tensor.scalar_type()) << name;
    EXPECT_TRUE(at::equal(file.tensor(name), tensor)) << name;
  }
  expect_refusal([&] { file.tensor("absent"); }, {"x.safetensors", "absent"});
}

TEST_F(ModelFiles, SafetensorsRefusesEveryKindOfDamage) {
  const std::string buffer(8, '\0');
  write_safetensors_text(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", buffer);
  EXPECT_EQ(SafetensorsFile(path_ / "x.safetensors").tensor("a").numel(), 2);

  expect_refused("[1]", buffer, "not a JSON object");
  expect_refused("{\"a\":", buffer, "not a JSON object");
  expect_refused(R"({"a":{"dtype":"F32","shape":[2]}})", buffer, "tensor a lacks");
  expect_refused(R"({"a":{"dtype":"F99","shape":[2],"data_offsets":[0,8]}})", buffer, "unknown dtype \"F99\"");
  expect_refused(R"({"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}})", buffer, "impossible shape [-2]");
  expect_refused(R"({"a":{"dtype":"F32","shape":[9223372036854775807,4],"data_offsets":[0,8]}})", buffer,
                 "impossible shape");
  expect_refused(R"({"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}})", buffer, "needs 12 bytes");
  expect_refused(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}})", buffer, "truncated or damaged");
  expect_refused(R"({"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}})", buffer, "truncated or damaged");
  expect_refused(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", buffer, "4 bytes follow");
  expect_refused(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})", buffer, "gap before tensor a");
  expect_refused(
      R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
      buffer, "tensor b overlaps");
  expect_refused(
      R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
      buffer, "names a tensor twice");
}

}  // namespace
}  // namespace tda
