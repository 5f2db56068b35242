// The structs that Python passes to the C++ loop: sizes, choices, and addresses of operands, tape and gradients.
// call.py reads the names, order and kinds of the fields from the library itself, so that they are written once,
// here. The interface is plain C without torch's headers: it compiles in seconds and works with every torch version.
// Letters as in rimlit/types.py.

#pragma once

#include <cstdint>

#include "product.h"

extern "C" {
// Defines a struct and `Name_fields`, the text of its declarations, from which call.py builds the same struct.
#define STRUCT(Name, ...)  \
    struct Name {          \
        __VA_ARGS__        \
    };                     \
    const char Name##_fields[] = #__VA_ARGS__;

STRUCT(Arguments,
    // sizes
    Int batch, steps, mechanisms, active, size, input_heads, slots, input_key, input_value;
    Int heads, key, value;  // of the communication; heads 0: none
    Int key_groups, value_groups, output_groups, vocabulary, threads;
    // distances between groups, steps and samples; with tokens, between groups and tokens (0 between steps)
    Int key_group_stride, key_step_stride, key_row_stride, value_group_stride, value_step_stride, value_row_stride;
    Int features_stride, from_features_stride;  // between samples
    Int projected_rows;                         // of the tape, for each sample
    Int offset_step_stride, offset_mechanism_stride, offset_row_stride;  // 0: one serves all
    // choices
    Int is_gru, across_mechanisms, reads_candidates, output_kind;  // output: 0 linear, 1 tanh, 2 gated, 3 cell gate
    Int margin, graded, dynamic;  // margin: 0 none, 1 of scores, 2 of probabilities, 3 to the best
    double width, soft_cap;       // soft_cap 0: none
    Int keys_hold_query, values_hold_cell, values_ahead, is_taped, is_double;
    // of one part of a sequence; the backward pass runs the parts from the last to the first. If later parts are done,
    // the forward pass finds its outputs computed and only writes the tape, and the backward pass adds to gradients.
    // If earlier parts follow, the threads' sums are not yet added up.
    Int later_are_done, earlier_follow;
    // operands
    const void *keys, *values, *hidden, *memory, *initial_hidden, *initial_memory;
    const void *input_query, *cell_input, *cell_hidden, *cell_bias;
    const void *communication, *communication_output, *communication_bias;
    const void* score_bias;  // (M)
    // inputs without a gradient
    const Int* tokens;  // (T, B)
    const uint8_t* resets;  // (B, T)
    const void *keep_input, *keep_communication;
    const void* offset;  // added to the relevance for the ranking
    // outputs
    void *features, *last_hidden, *last_memory;
    uint8_t* is_active;  // (B, T, M)
    void *attention, *null_attention, *activity;  // null_attention (B, T, M) and activity only where they are recorded
    void* gate;                 // (B, T, M), only where there are gates
    void *relevance, *total;    // (B, T, M) and of several heads (B, T, M, I), only where their derivative is asked for
    // tape
    void *gates, *old_memory, *squashed, *ahead, *projected, *weights, *read, *output, *moved;
    int32_t *place, *start;
    // gradients: of the outputs, of what belongs to samples, and of what all threads add to
    const void *from_features, *from_hidden, *from_memory, *from_relevance;
    void *into_hidden, *into_memory, *into_initial_hidden, *into_initial_memory;
    void *into_keys, *into_values, *into_input_query, *into_cell_input, *into_cell_hidden, *into_cell_bias;
    void *into_communication, *into_communication_output, *into_communication_bias, *into_score_bias;
    // the same for each thread but the first, one after the other; keys and values only with tokens
    void *others_keys, *others_values, *others_input_query, *others_cell_input, *others_cell_hidden, *others_cell_bias;
    void *others_communication, *others_communication_output, *others_communication_bias, *others_score_bias;
)

// One step from the raw input (B, D): its projections are computed here, then the loop runs on them.
STRUCT(StepArguments,
    const Arguments* loop;
    Int input_size, key_size, key_groups;
    const void *key, *query;                 // (1 or M, D, I·key), (M, d, I·key)
    const void *folded_key, *folded_value;   // (M, D, I·d), (M, D, I·gates), where that is cheaper
    const void* value;                       // (1 or M, D, I·value)
    void *keys, *values;                     // as the loop reads them
)
}
