// Making elements.

/** Return a new element: its tag, its class, what it says. */
export function make(tag, className = '', text = '') {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== '') node.textContent = text;
  return node;
}

/** Return a new button that calls `press` when it is clicked. */
export function makeButton(className, text, press) {
  const button = make('button', className, text);
  button.type = 'button';
  button.addEventListener('click', press);
  return button;
}
