// What the server says of this page, as JSON in one element of its head: see `static_files.page_head`.
export const page = Object.freeze(JSON.parse(document.getElementById('eichi-page').textContent));
