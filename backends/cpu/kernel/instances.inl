// The kernels that a build may compile once: KVQ_INSTANCE is `template` where that happens, `extern template`
// elsewhere.

KVQ_INSTANCE void attend_integer_pages<2, 2>(split_task const&, kernel_scratch&);
KVQ_INSTANCE void attend_integer_pages<3, 3>(split_task const&, kernel_scratch&);
KVQ_INSTANCE void attend_integer_pages<4, 4>(split_task const&, kernel_scratch&);
KVQ_INSTANCE void attend_integer_pages<bits_by_chunk, bits_by_chunk>(split_task const&, kernel_scratch&);
