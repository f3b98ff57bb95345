from tinyhat.pipeline import cut_off


def test_truncation_is_said_in_a_sentence():
    facts = {"documents": 10, "documents_cut": 0, "tokens_total": 900, "tokens_read": 900, "max_tokens": 512}
    assert cut_off(facts) == "all 10 documents were read whole (512 tokens at most)"
    said = cut_off(facts | {"documents_cut": 3, "tokens_read": 675})
    assert said == "3 of 10 documents are longer than 512 tokens; 25.0% of all tokens were cut off"
