"""``mwork-lens demo``: the whole story on one model."""

from dataclasses import replace

from .options import CorpusOptions, LimitOption, ModelOptions, OutputOption, SelectionOptions, new_folder, say_written

LANGUAGES = "en,fr,zh,ru,th"


def demo(
    model: ModelOptions,
    text: CorpusOptions,
    selection: SelectionOptions,
    limit: LimitOption = 40,
    output: OutputOption = None,
) -> None:
    """The whole story: find each language's neurons, switch them off, measure every language, write a page."""
    from ..experiments.demo import run_demo

    selection.check()
    folder = new_folder(output, "demo")
    corpus = replace(text, languages=text.languages or LANGUAGES).load(limit)
    result = run_demo(model.load(), corpus, top=selection.top, quorum=selection.quorum)
    written = result.write(folder)
    print("\nRise of loss on held-out text, nats a token: neurons off (rows), language read (columns)\n")
    print(result.table().to_string(float_format=lambda value: f"{value:.2f}", na_rep="–"))
    print("\n" + "\n".join(result.findings()) + "\n")
    say_written(written)
