// Show the result of a click, with buttons for what can follow, or with a file that is downloaded at once.
import { make, makeButton } from './dom.js';

export function showActionResult({ element, props, trigger, watch }) {
  let downloaded = '';

  function press(action, label) {
    const button = makeButton('', label, () => trigger('click', { action }));
    button.dataset.action = action;
    return button;
  }

  function show() {
    const { lines = [], actions = {}, file } = props.value || {};
    const link = file && Object.assign(make('a', '', file.name), { href: file.url, download: file.name });
    element
      .querySelector('.outcome')
      .replaceChildren(
        ...(link ? [link] : []),
        ...lines.map(([look, text]) => make('p', look, text)),
        ...Object.entries(actions).map(([action, label]) => press(action, label)),
      );
    // The user has already clicked to get the file, so its download needs no second click.
    if (file && file.url !== downloaded) {
      downloaded = file.url;
      link.click();
    }
  }

  show();
  watch('value', show);
}
