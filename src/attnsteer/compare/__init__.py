"""One prompt, one seed, with and without the methods: requests, models, runs and comparison sheets.

Plain functions for the command line, the web page, a server and notebooks:

    source = find_model("shapes-unet")
    request = Request("a red circle to the left of a blue square", negative="blurry", seed=7)
    planned = plan(request, source.classifier)
    model = open_model(source)
    request = resolve(request, model)
    pictures = run_variants(request, model, planned)
    comparison_sheet(request, planned, pictures).save("sheet.png")
"""

from attnsteer.compare.models import ModelSource, OpenModel, find_model, open_model, resolve
from attnsteer.compare.request import Request, RequestError
from attnsteer.compare.run import Picture, Plan, Variant, generate, plan, run_variants
from attnsteer.compare.sheets import comparison_sheet

__all__ = [
    "ModelSource",
    "OpenModel",
    "Picture",
    "Plan",
    "Request",
    "RequestError",
    "Variant",
    "comparison_sheet",
    "find_model",
    "generate",
    "open_model",
    "plan",
    "resolve",
    "run_variants",
]
