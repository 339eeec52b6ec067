"""What the playground's page says, how it is laid out, and what it tells those who do not see it.

Knows nothing about Gradio but the names of its tags.
"""

from __future__ import annotations

TITLE = "What a representation keeps"
ABOUT = (
    "A vision encoder turns an image into a list of numbers, its representation. Samples are drawn from that list "
    "alone: **what they have in common is in it, what differs between them is not.**"
)
BEGIN = "Give a photograph, or click one of the small ones, and press Draw. A draft comes first, better images follow."
KNOWN_WORLD = (
    "Of this world of colored shapes it is known what an image holds. Leave something out of the representation and "
    "see how samples differ in it, and in nothing else. The model knows nothing of photographs."
)
OPEN = "Open a shared drawing"
SHARED = "A file with model, seed, settings and representation, without the photograph, as a finished drawing gives it."
OPENED = (
    "A shared drawing: its representation is here, its photograph is not. A photograph that you give takes its place."
)
COPIED = "The link is copied, and stands in the address bar. It holds model, seed, settings and h, not the photograph."
TOO_LONG = "This representation is too long for a link; the file to share holds it."
STYLE = """
#layout { display: grid; grid-template-columns: minmax(280px, 1fr) minmax(0, 2fr); grid-template-rows: auto 1fr;
  grid-template-areas: "give drawn" "more drawn"; gap: 16px; }
#give { grid-area: give; } #drawn { grid-area: drawn; } #more { grid-area: more; }
@media (max-width: 767px) { #layout { grid-template-columns: minmax(0, 1fr); grid-template-rows: none;
  grid-template-areas: "give" "drawn" "more"; } }
#examples { flex-wrap: nowrap; gap: 8px; }
#examples button { min-width: 0 !important; height: 80px; padding: 4px; background-size: cover;
  background-position: center; align-items: end; font-size: 12px; line-height: 1.1; overflow: hidden; color: #fff;
  text-shadow: 0 0 2px #000, 0 0 3px #000, 0 0 6px #000; }
#samples .grid-wrap, #beside-samples .grid-wrap { padding-top: 24px; min-height: 0; }
#samples .grid-container, #beside-samples .grid-container {
  grid-template-columns: repeat(4, minmax(0, 1fr)) !important; }
#views { justify-content: flex-start; }
#seen, #second { max-width: 220px; margin: 0; }
#seen img, #second img { padding-top: 24px; }
#status { min-height: 1.6em; }
#samples img, #beside-samples img { image-rendering: pixelated; }
"""
# What Gradio leaves out for those who do not see the page.
SPOKEN = """() => {
  document.documentElement.lang = "en";
  const called = [["#samples", "Sample"], ["#beside-samples", "Sample of the model beside it"]];
  const alone = [["#seen", "The image as the encoder sees it"], ["#second", "The second one as the encoder sees it"],
    ["#photo", "The image that was given"], ["#other", "The second image that was given"]];
  const name = () => {
    document.querySelector("#status")?.setAttribute("role", "status");
    for (const [where, what] of called)
      document.querySelectorAll(`${where} img`).forEach((each, number) => {
        const said = `${what}, number ${number + 1}`;
        if (each.alt !== said) each.alt = said;
      });
    for (const [where, what] of alone)
      document.querySelectorAll(`${where} img`).forEach((each) => { if (each.alt !== what) each.alt = what; });
  };
  new MutationObserver(name).observe(document.body, { childList: true, subtree: true });
  name();
}"""
# A link holds a drawing behind "#drawing="; what it holds goes to the server as a value of the page.
FROM_LINK = """() => [location.hash.startsWith("#drawing=") ? location.hash.slice(9) : ""]"""
TO_LINK = f"""(code) => {{
  if (!code) return ["{TOO_LONG}"];
  history.replaceState(null, "", "#drawing=" + code);
  navigator.clipboard?.writeText(location.href).catch(() => {{}});
  return ["{COPIED}"];
}}"""
# Once the values of a shared drawing are on the page.
DRAW = """(shared) => { if (shared) setTimeout(() => document.querySelector("#draw").click(), 100); }"""
