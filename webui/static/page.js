// Read the server's data about this page, JSON in an element of its head (`static_files.page_head`).
export const page = Object.freeze(JSON.parse(document.getElementById('eichi-page').textContent));
