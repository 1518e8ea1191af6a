// Swagger's page of the API, in the theme that the playground was set to.

import {get} from "./api.js";
import {remembered} from "./remembered.js";

document.documentElement.dataset.theme = remembered("samclip-theme").get();
const spec = await get("/openapi.json");  // with the playground's key: without, it lacks heads of one's own
for (const {post} of Object.values(spec.paths)) {  // Swagger fills a field that has no example
  const form = post?.requestBody.content["multipart/form-data"].schema.properties ?? {};
  for (const field of Object.values(form)) field.example ??= field.type === "array" ? [] : "";
}
window.ui = window.SwaggerUIBundle({
  spec, dom_id: "#swagger-ui", deepLinking: true, tryItOutEnabled: true,
  presets: [window.SwaggerUIBundle.presets.apis], layout: "BaseLayout",
  requestInterceptor(request) {  // and sends those that are empty
    if (!(request.body instanceof FormData)) return request;
    const form = new FormData();
    for (const [name, value] of request.body) {
      if (value !== "" && value.size !== 0) form.append(name, value);
    }
    return Object.assign(request, {body: form});
  },
});
