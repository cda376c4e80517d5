#include "attention/packed_documents.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "attention/cpu/parallel.h"
#include "attention/reference/element_conversion.h"
#include "attention/unchecked_attention.h"

namespace tda {
namespace {

constexpr std::int64_t kIndexRows = 64, kIndexKeys = 1024;  // of a word of the survivor index (attention/cpu/problem.h)

std::size_t aligned(std::int64_t bytes) { return static_cast<std::size_t>((bytes + 63) / 64 * 64); }

std::int64_t element_bytes(DataType type) { return static_cast<std::int64_t>(element_size(type)); }

DataType parameter_type(DataType type) { return type == DataType::kFloat64 ? type : DataType::kFloat32; }

AttentionShape document_shape(const AttentionShape& shape, const PackedDocuments& documents, std::int64_t document) {
  AttentionShape result = shape;
  result.query_length = documents.query_offsets[document + 1] - documents.query_offsets[document];
  result.key_length = documents.key_offsets[document + 1] - documents.key_offsets[document];
  return result;
}

// The tensor from row `row` on.
template <typename AnyTensor>
AnyTensor rows_from(AnyTensor tensor, std::int64_t row, DataType type) {
  using Byte = std::conditional_t<std::is_same_v<AnyTensor, Tensor>, char, const char>;
  if (tensor.data != nullptr) {
    tensor.data = static_cast<Byte*>(tensor.data) + row * tensor.row_stride * element_bytes(type);
  }
  return tensor;
}

AttentionInputs document_inputs(const AttentionInputs& inputs, const AttentionOptions& options, std::int64_t query,
                                std::int64_t key) {
  AttentionInputs result = inputs;
  for (int view = 0; view < options.views; ++view) {
    result.q[view] = rows_from(inputs.q[view], query, options.data_type);
    result.k[view] = rows_from(inputs.k[view], key, options.data_type);
  }
  result.v = rows_from(inputs.v, key, options.data_type);
  return result;
}

// Bytes of the index before the part of the document whose first query is `query`: floor(a / 64) + d row tiles hold
// what d documents with a rows need, since ceil(t / 64) <= floor((a + t) / 64) - floor(a / 64) + 1.
std::size_t index_offset(const AttentionShape& shape, const AttentionOptions& options, const PackedDocuments& documents,
                         std::int64_t query, std::int64_t document) {
  const std::int64_t words = (documents.longest_key + kIndexKeys - 1) / kIndexKeys;
  return static_cast<std::size_t>((query / kIndexRows + document) * words * options.views * shape.query_heads) * 8;
}

// Zeros between what a document's call writes of the index and the part of the next one: nothing stays unwritten.
void fill_index_gap(const AttentionShape& shape, const AttentionOptions& options, const PackedDocuments& documents,
                    std::int64_t document, void* survivor_index) {
  if (survivor_index == nullptr) return;
  const std::size_t own = unchecked::survivor_index_bytes(document_shape(shape, documents, document), options) +
                          index_offset(shape, options, documents, documents.query_offsets[document], document);
  const std::size_t next = index_offset(shape, options, documents, documents.query_offsets[document + 1], document + 1);
  std::memset(static_cast<char*>(survivor_index) + own, 0, next - own);
}

double work_of(const AttentionShape& document) {
  const auto queries = static_cast<double>(document.query_length), keys = static_cast<double>(document.key_length);
  constexpr double kRowWork = 64.0;  // what a row costs besides its pairs, in pairs
  return queries * (keys - 0.5 * queries) + kRowWork * (queries + keys);
}

struct Order {
  double work;
  std::int64_t document;
};

using WorkspaceBytes = std::size_t (*)(const AttentionShape&, const AttentionOptions&);

// How documents share threads and workspace. The workspace holds the order of the documents, `head_bytes` for the
// caller, and slots: a document that all threads share has one from the begin, the others have one a thread.
class DocumentSchedule {
 public:
  DocumentSchedule(const AttentionShape& shape, const AttentionOptions& options, const PackedDocuments& documents,
                   std::size_t head_bytes, WorkspaceBytes workspace_bytes)
      : shape_(shape), options_(options), documents_(documents), alone_(options), head_bytes_(head_bytes) {
    alone_.threads = 1;
    alone_.task_runner = nullptr;
    threads_ = cpu::thread_count(options);
    double total = 0.0;
    for (std::int64_t d = 0; d < documents.count; ++d) total += work_of(document_shape(shape, documents, d));
    // The reference knows one thread only.
    const bool may_share = threads_ > 1 && !unchecked::uses_reference(options);
    shared_work_ = may_share ? total / (4.0 * threads_) : total;
    for (std::int64_t d = 0; d < documents.count; ++d) {
      const AttentionShape document = document_shape(shape, documents, d);
      const bool shared = is_shared(work_of(document));
      std::size_t& largest = shared ? shared_bytes_ : alone_bytes_;
      largest = std::max(largest, survivor_bytes(document) + workspace_bytes(document, shared ? options : alone_));
    }
    alone_bytes_ = aligned(static_cast<std::int64_t>(alone_bytes_));
  }

  std::size_t bytes() const {
    const auto slots = static_cast<std::size_t>(std::min<std::int64_t>(threads_, documents_.count));
    return order_bytes() + head_bytes_ + std::max(shared_bytes_, slots * alone_bytes_);
  }
  void* head(void* workspace) const { return static_cast<char*>(workspace) + order_bytes(); }

  // Bytes in front of a document's workspace that its survivors are counted in: (query_heads, its queries).
  static std::size_t survivor_bytes(const AttentionShape& document) {
    return aligned(document.query_heads * document.query_length * 4);
  }

  // Calls visit(document, its shape, options of its call, slot) for every document.
  template <typename Visit>
  void run(void* workspace, const Visit& visit) const {
    auto* const order = static_cast<Order*>(workspace);
    for (std::int64_t d = 0; d < documents_.count; ++d) {
      order[d] = {work_of(document_shape(shape_, documents_, d)), d};
    }
    std::sort(order, order + documents_.count, [](const Order& a, const Order& b) {
      return a.work != b.work ? a.work > b.work : a.document < b.document;
    });
    char* const slots = static_cast<char*>(head(workspace)) + head_bytes_;
    std::int64_t first = 0;
    for (; first < documents_.count && is_shared(order[first].work); ++first) {
      const std::int64_t document = order[first].document;
      visit(document, document_shape(shape_, documents_, document), options_, slots);
    }
    cpu::for_each_unit(options_, documents_.count - first, [&](int thread, std::int64_t unit) {
      const std::int64_t document = order[first + unit].document;
      visit(document, document_shape(shape_, documents_, document), alone_,
            slots + static_cast<std::size_t>(thread) * alone_bytes_);
    });
  }

 private:
  bool is_shared(double work) const { return work > shared_work_; }
  std::size_t order_bytes() const { return aligned(documents_.count * static_cast<std::int64_t>(sizeof(Order))); }

  const AttentionShape& shape_;
  const AttentionOptions& options_;
  const PackedDocuments& documents_;
  AttentionOptions alone_;
  std::size_t head_bytes_;
  std::int64_t threads_ = 1;
  double shared_work_ = 0.0;
  std::size_t shared_bytes_ = 0, alone_bytes_ = 0;
};

DocumentSchedule forward_schedule(const AttentionShape& shape, const AttentionOptions& options,
                                  const PackedDocuments& documents) {
  return {shape, options, documents, 0, unchecked::forward_workspace_bytes};
}

// The head of the workspace holds the documents' shares of dbeta and of dlambda: [document][query head].
std::size_t share_bytes(const AttentionShape& shape, const PackedDocuments& documents) {
  return aligned(documents.count * shape.query_heads * 8);
}

DocumentSchedule backward_schedule(const AttentionShape& shape, const AttentionOptions& options,
                                   const PackedDocuments& documents) {
  return {shape, options, documents, 2 * share_bytes(shape, documents), unchecked::backward_workspace_bytes};
}

// Adds up the shares of the documents, in their order.
void add_shares(const AttentionShape& shape, const PackedDocuments& documents, DataType type, const void* shares,
                void* sums) {
  if (sums == nullptr) return;
  for (std::int64_t head = 0; head < shape.query_heads; ++head) {
    double sum = 0.0;
    for (std::int64_t d = 0; d < documents.count; ++d) sum += load_element(type, shares, d * shape.query_heads + head);
    store_element(type, sums, head, sum);
  }
}

}  // namespace

std::size_t packed_survivor_index_bytes(const AttentionShape& shape, const AttentionOptions& options,
                                        const PackedDocuments& documents) {
  if (unchecked::uses_reference(options)) return 0;
  return index_offset(shape, options, documents, shape.query_length, documents.count);
}

std::size_t packed_forward_workspace_bytes(const AttentionShape& shape, const AttentionOptions& options,
                                           const PackedDocuments& documents) {
  return forward_schedule(shape, options, documents).bytes();
}

std::size_t packed_backward_workspace_bytes(const AttentionShape& shape, const AttentionOptions& options,
                                            const PackedDocuments& documents) {
  return backward_schedule(shape, options, documents).bytes();
}

void packed_forward(const AttentionShape& shape, const AttentionOptions& options, const AttentionInputs& inputs,
                    const ForwardOutputs& outputs, void* workspace, const PackedDocuments& documents) {
  const auto attend = [&](std::int64_t document, const AttentionShape& own, const AttentionOptions& own_options,
                          char* slot) {
    if (!unchecked::uses_reference(options)) {
      fill_index_gap(shape, options, documents, document, outputs.survivor_index);
    }
    if (own.query_length == 0) return;
    const std::int64_t query = documents.query_offsets[document], key = documents.key_offsets[document];
    auto* const survivors = reinterpret_cast<std::int32_t*>(slot);
    ForwardOutputs own_outputs;
    own_outputs.output = rows_from(outputs.output, query, options.data_type);
    if (outputs.survivors != nullptr) own_outputs.survivors = survivors;
    if (outputs.survivor_index != nullptr) {
      own_outputs.survivor_index =
          static_cast<char*>(outputs.survivor_index) + index_offset(shape, options, documents, query, document);
    }
    unchecked::forward(own, own_options, document_inputs(inputs, options, query, key), own_outputs,
                       slot + DocumentSchedule::survivor_bytes(own));
    if (outputs.survivors == nullptr) return;
    for (std::int64_t head = 0; head < shape.query_heads; ++head) {
      std::copy_n(survivors + head * own.query_length, own.query_length,
                  outputs.survivors + head * shape.query_length + query);
    }
  };
  forward_schedule(shape, options, documents).run(workspace, attend);
}

void packed_backward(const AttentionShape& shape, const AttentionOptions& options, const AttentionInputs& inputs,
                     const ConstTensor& d_output, const void* survivor_index, const BackwardOutputs& outputs,
                     void* workspace, const PackedDocuments& documents) {
  const DocumentSchedule schedule = backward_schedule(shape, options, documents);
  const DataType type = parameter_type(options.data_type);
  char* const dbeta = static_cast<char*>(schedule.head(workspace));
  char* const dlambda = dbeta + share_bytes(shape, documents);
  std::memset(dbeta, 0, 2 * share_bytes(shape, documents));
  const auto differentiate = [&](std::int64_t document, const AttentionShape& own, const AttentionOptions& own_options,
                                 char* slot) {
    if (own.key_length == 0) return;
    const std::int64_t query = documents.query_offsets[document], key = documents.key_offsets[document];
    const std::int64_t share = document * shape.query_heads * element_bytes(type);
    BackwardOutputs own_outputs;
    for (int view = 0; view < options.views; ++view) {
      own_outputs.dq[view] = rows_from(outputs.dq[view], query, options.data_type);
      own_outputs.dk[view] = rows_from(outputs.dk[view], key, options.data_type);
    }
    own_outputs.dv = rows_from(outputs.dv, key, options.data_type);
    if (outputs.dbeta != nullptr) own_outputs.dbeta = dbeta + share;
    if (outputs.dlambda != nullptr) own_outputs.dlambda = dlambda + share;
    const char* index = static_cast<const char*>(survivor_index);
    if (index != nullptr) index += index_offset(shape, options, documents, query, document);
    unchecked::backward(own, own_options, document_inputs(inputs, options, query, key),
                        rows_from(d_output, query, options.data_type), index, own_outputs,
                        slot + DocumentSchedule::survivor_bytes(own));
  };
  schedule.run(workspace, differentiate);
  add_shares(shape, documents, type, dbeta, outputs.dbeta);
  add_shares(shape, documents, type, dlambda, outputs.dlambda);
}

}  // namespace tda
