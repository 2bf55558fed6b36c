// The tooltip: by mouse and by keyboard.

const tip = document.getElementById("tip");
let explained = null;  // what the tooltip is shown for
function placeTip() {
  const box = explained.getBoundingClientRect(), own = tip.getBoundingClientRect();
  const left = Math.min(box.left, innerWidth - own.width - 12);
  const below = box.bottom + 8 + own.height < innerHeight;
  tip.style.left = `${Math.max(12, left)}px`;
  tip.style.top = `${below ? box.bottom + 8 : Math.max(8, box.top - own.height - 8)}px`;
}
function hideTip() {
  if (explained) explained.removeAttribute("aria-describedby");
  explained = null;
  tip.hidden = true;
}
function explain(element, text) {
  if (!text) return element;
  const show = () => {
    hideTip();
    explained = element;
    // In a dialog the tooltip has to be, too: a dialog lies over all else.
    (element.closest("dialog") ?? document.body).append(tip);
    tip.textContent = text;
    tip.hidden = false;
    element.setAttribute("aria-describedby", "tip");
    placeTip();
  };
  for (const event of ["mouseenter", "focusin"]) element.addEventListener(event, show);
  for (const event of ["mouseleave", "focusout"]) element.addEventListener(event, hideTip);
  return element;
}
addEventListener("keydown", (event) => { if (event.key === "Escape") hideTip(); });
addEventListener("scroll", () => { if (explained) placeTip(); }, { passive: true, capture: true });
