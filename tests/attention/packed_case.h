// Cases with packed documents, and the documents of a case as cases of their own.
#pragma once

#include <utility>

#include "attention_case.h"

namespace tda::test {

// (queries, keys) of the documents, in order.
using DocumentLengths = std::vector<std::pair<std::int32_t, std::int32_t>>;

// A case whose shape is the sum of the documents; `shape`'s batch and lengths are overwritten. beta 0.3 and more.
AttentionCase packed_case(const DocumentLengths& lengths, AttentionShape shape, const AttentionOptions& options,
                          const Layouts& layouts, std::uint64_t seed);

// Document d alone, contiguous and not packed.
AttentionCase document_case(const AttentionCase& packed, std::int64_t document);

// What a packed run wrote for document d, in the shapes of document_case; dbeta and dlambda, which are sums over the
// documents, are left empty.
Results document_results(const AttentionCase& packed, const Results& results, std::int64_t document);

}  // namespace tda::test
