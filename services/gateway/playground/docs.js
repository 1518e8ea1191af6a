// Swagger's page of the API, in the theme that the playground was set to.

document.documentElement.dataset.theme = localStorage.getItem("samclip-theme") ?? "";
const spec = await (await fetch("/openapi.json")).json();
for (const {post} of Object.values(spec.paths)) {  // Swagger fills a field that has no example
  const form = post?.requestBody.content["multipart/form-data"].schema.properties ?? {};
  for (const field of Object.values(form)) field.example ??= field.type === "array" ? [] : "";
}
window.ui = window.SwaggerUIBundle({
  spec, dom_id: "#swagger-ui", deepLinking: true, tryItOutEnabled: true,
  presets: [window.SwaggerUIBundle.presets.apis], layout: "BaseLayout",
  async requestInterceptor(request) {  // and sends those that are empty, and JSON as files
    if (!(request.body instanceof FormData)) return request;
    const form = new FormData();
    for (const [name, value] of request.body) {
      if (value === "" || value.size === 0) continue;
      form.append(name, value.type === "application/json" ? await value.text() : value);
    }
    return Object.assign(request, {body: form});
  },
});
