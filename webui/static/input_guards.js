// Keep what the user types into gradio's boxes as it was typed, so that the checks can say what is wrong with it.
//
// Gradio would replace an empty box of a slider by the slider's minimum, and Enter in a box of names by the first name of the
// list that matches, or by the first of all if nothing is typed.

const LIST_KEYS = ['ArrowUp', 'ArrowDown', 'Home', 'End'];

function leaveEmpty(event) {
  if (event.target.dataset?.testid === 'number-input' && event.target.value === '') event.stopImmediatePropagation();
}

// Keep a typed name at Enter, unless the last key chose from the list, which is noted at the box.
function leaveName(event) {
  const box = event.target;
  if (!box.closest?.('.eichi-name')) return;
  if (event.key !== 'Enter') {
    box.dataset.chooses = LIST_KEYS.includes(event.key);
  } else if (event.isComposing || box.dataset.chooses !== 'true') {
    event.stopImmediatePropagation();
    if (!event.isComposing) box.blur();
  }
}

/** Guard all boxes of the page from now on. */
export function guardInputs() {
  document.addEventListener('blur', leaveEmpty, true);
  document.addEventListener('keydown', leaveName, true);
}
