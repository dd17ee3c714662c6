// What is typed into gradio's boxes and left there stays as it was typed, so that checks can say what is wrong with it.
//
// A slider makes nothing the least it can be, and Enter in a box of names takes the list's first name that begins to match, or
// the first of all where nothing is typed.

const LIST_KEYS = ['ArrowUp', 'ArrowDown', 'Home', 'End'];

function leaveEmpty(event) {
  if (event.target.dataset?.testid === 'number-input' && event.target.value === '') event.stopImmediatePropagation();
}

// Keys that choose from the list are noted at the box, until something is typed again.
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
