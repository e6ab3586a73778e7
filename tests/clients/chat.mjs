// Makes one call with each of the two ways into the typed client for JavaScript:
//   node tests/clients/chat.mjs URL KEY MODE [ID ID]
// and prints {"service": …, "api": …}: what JsonServiceClient.send() gives or throws, and what
// api() or apiVoid() of JsonApiClient.create() gives. `delete` takes an id for each of the two.
import { ApiResult, JsonApiClient, JsonServiceClient } from '@servicestack/client'

// The types, as the generator for JavaScript writes them.

export class OpenAiMessage {
    /** @param {{content?:string,images?:string[],role?:string,name?:string,tool_call_id?:string}} [init] */
    constructor(init) { Object.assign(this, init) }
    /** @type {string} */
    content;
    /** @type {?string[]} */
    images;
    /** @type {string} */
    role;
    /** @type {?string} */
    name;
    /** @type {?string} */
    tool_call_id;
}

export class OpenAiChat {
    /** @param {{messages?:OpenAiMessage[],model?:string,max_tokens?:number,temperature?:number,top_p?:number,stop?:string[],user?:string}} [init] */
    constructor(init) { Object.assign(this, init) }
    /** @type {OpenAiMessage[]} */
    messages = [];
    /** @type {string} */
    model;
    /** @type {?number} */
    max_tokens;
    /** @type {?number} */
    temperature;
    /** @type {?number} */
    top_p;
    /** @type {?string[]} */
    stop;
    /** @type {?string} */
    user;
}

export class OpenAiChatResponse {
    /** @param {{id?:string,choices?:object[],created?:number,model?:string,object?:string,usage?:object}} [init] */
    constructor(init) { Object.assign(this, init) }
    /** @type {string} */
    id;
    /** @type {object[]} */
    choices = [];
    /** @type {number} */
    created;
    /** @type {string} */
    model;
    /** @type {string} */
    object;
    /** @type {object} */
    usage;
}

export class OpenAiChatCompletion extends OpenAiChat {
    /** @param {{refId?:string,provider?:string,tag?:string,messages?:OpenAiMessage[],model?:string,max_tokens?:number,temperature?:number,top_p?:number,stop?:string[],user?:string}} [init] */
    constructor(init) { super(init); Object.assign(this, init) }
    /** @type {?string} */
    refId;
    /** @type {?string} */
    provider;
    /** @type {?string} */
    tag;
    getTypeName() { return 'OpenAiChatCompletion' }
    getMethod() { return 'POST' }
    createResponse() { return new OpenAiChatResponse() }
}

export class HelloResponse {
    /** @param {{result?:string}} [init] */
    constructor(init) { Object.assign(this, init) }
    /** @type {string} */
    result;
}

export class Hello {
    /** @param {{name?:string}} [init] */
    constructor(init) { Object.assign(this, init) }
    /** @type {string} */
    name;
    getTypeName() { return 'Hello' }
    getMethod() { return 'GET' }
    createResponse() { return new HelloResponse() }
}

export class QueryBase {
    /** @param {{skip?:number,take?:number,orderBy?:string,orderByDesc?:string,include?:string,fields?:string,meta?:Object<string,string>}} [init] */
    constructor(init) { Object.assign(this, init) }
    /** @type {?number} */
    skip;
    /** @type {?number} */
    take;
    /** @type {string} */
    orderBy;
    /** @type {string} */
    orderByDesc;
    /** @type {string} */
    include;
    /** @type {string} */
    fields;
    /** @type {Object<string,string>} */
    meta;
}

export class QueryResponse {
    /** @param {{offset?:number,total?:number,results?:object[]}} [init] */
    constructor(init) { Object.assign(this, init) }
    /** @type {number} */
    offset;
    /** @type {number} */
    total;
    /** @type {object[]} */
    results;
}

export class QueryAiProviders extends QueryBase {
    /** @param {{name?:string,skip?:number,take?:number,orderBy?:string,orderByDesc?:string,include?:string,fields?:string,meta?:Object<string,string>}} [init] */
    constructor(init) { super(init); Object.assign(this, init) }
    /** @type {?string} */
    name;
    getTypeName() { return 'QueryAiProviders' }
    getMethod() { return 'GET' }
    createResponse() { return new QueryResponse() }
}

export class DeleteAiProvider {
    /** @param {{id?:number}} [init] */
    constructor(init) { Object.assign(this, init) }
    /** @type {number} */
    id;
    getTypeName() { return 'DeleteAiProvider' }
    getMethod() { return 'DELETE' }
    createResponse() { }
}

function chat(model) {
    return new OpenAiChatCompletion({
        model,
        messages: [new OpenAiMessage({ role: 'user', content: "What's the capital of France?" })],
        max_tokens: 50,
    })
}

const [url, key, mode, ...ids] = process.argv.slice(2)

const requests = {
    chat: () => chat('mixtral:8x22b'),
    unknown: () => chat('nope'),
    invalid: () => new OpenAiChatCompletion({ model: 'mixtral:8x22b' }),
    hello: () => new Hello({ name: 'World & more' }),
    // A list and a null in a query string are this client's odd corners.
    providers: () => new QueryAiProviders({ name: null, take: 1, orderBy: '-name' }),
    delete: () => new DeleteAiProvider({ id: Number(ids.shift()) }),
}

async function bySending() {
    const client = new JsonServiceClient(url)
    client.bearerToken = key
    const request = requests[mode]()
    try {
        const response = await (mode == 'delete' ? client.sendVoid(request) : client.send(request))
        return { response: response ?? null }
    } catch (error) {
        return { thrown: error }
    }
}

async function byApi() {
    const client = JsonApiClient.create(url)
    client.bearerToken = key
    const request = requests[mode]()
    const api = await (mode == 'delete' ? client.apiVoid(request) : client.api(request))
    const { succeeded, failed, response, error, errorCode, errorMessage } = api
    const messages = (error?.errors ?? []).map(e => api.fieldErrorMessage(e.fieldName))
    return {
        typed: api instanceof ApiResult, succeeded, failed, response, error,
        errorCode, errorMessage, messages,
    }
}

const service = await bySending()
const api = await byApi()
console.log(JSON.stringify({ service, api }))
